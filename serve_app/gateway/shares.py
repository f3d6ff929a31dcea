"""Each tenant's share of a gateway: how many answers of one are under way at a time.

Counted from when a call is let in, before anything of it is waited for, so that no number of calls
at the same moment gets past the bound. Knows neither HTTP nor what an answer is.
"""

from __future__ import annotations

from collections import Counter

from serve_app.tasks import AT_ONCE


class Share:
    """What one call has taken: its answers, as far as they are worked on side by side. Given back
    as they end, or all at once."""

    def __init__(self, under_way: Counter[str], tenant: str, answers: int) -> None:
        self._under_way, self._tenant, self._left = under_way, tenant, answers

    def release(self, answers: int | None = None) -> None:
        """Give back `answers`, or all that are left."""
        before = min(self._left, AT_ONCE)
        self._left = 0 if answers is None else max(0, self._left - answers)
        self._under_way[self._tenant] -= before - min(self._left, AT_ONCE)
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
        under_way, more = self._under_way[tenant], min(answers, AT_ONCE)
        if under_way and under_way + more > self._limit:
            return None
        self._under_way[tenant] = under_way + more
        return Share(self._under_way, tenant, answers)
