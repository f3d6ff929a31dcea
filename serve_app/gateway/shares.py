"""Each tenant's share of a gateway: how many answers of one are under way at a time.

Counted from when a call is let in, before anything of it is waited for, so that no number of calls
at the same moment gets past the bound. Knows neither HTTP nor what an answer is.
"""

from __future__ import annotations

from collections import Counter


class Share:
    """What one call has taken; given back answer by answer, or what is left of it at once."""

    def __init__(self, under_way: Counter[str], tenant: str, answers: int) -> None:
        self._under_way, self._tenant, self._left = under_way, tenant, answers

    def release(self, answers: int | None = None) -> None:
        """Give back `answers`, or all that are left."""
        ended = self._left if answers is None else min(answers, self._left)
        self._left -= ended
        self._under_way[self._tenant] -= ended
        if not self._under_way[self._tenant]:
            del self._under_way[self._tenant]


class Shares:
    """The answers under way, by tenant; none has more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way = Counter[str]()

    def take(self, tenant: str, answers: int) -> Share | None:
        """A share for a call of `answers`, or None where its tenant has too many. One call may be
        over the limit by itself where nothing else of its tenant's is under way."""
        under_way = self._under_way[tenant]
        if under_way and under_way + answers > self._limit:
            return None
        self._under_way[tenant] = under_way + answers
        return Share(self._under_way, tenant, answers)
