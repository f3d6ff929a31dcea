"""Sums the usage of consecutive entries of one audit chain into a batch for the meter."""

from __future__ import annotations

from cluster.records.trace import MeteredTrace
from cluster.records.usage import MeteredUsage


class UsageBatch:
    """Usage of consecutive entries of a chain, from `first` on; all of it is dated with the first
    entry."""

    def __init__(self, writer: str, first: int) -> None:
        self._writer, self._first, self._after = writer, first, first
        self._since = 0.0
        self._sums: dict[tuple[str, str, str], list[int]] = {}

    @property
    def first(self) -> int:
        """Sequence number of the first entry."""
        return self._first

    @property
    def after(self) -> int:
        """Sequence number after the last entry."""
        return self._after

    @property
    def since(self) -> float:
        """When the first entry was recorded; 0 while there is none."""
        return self._since

    def add(self, trace: MeteredTrace) -> None:
        """Count the next entry of the chain."""
        if self._after == self._first:
            self._since = trace.recorded_at
        self._after += 1
        usage = trace.usage
        if usage is None:
            return
        key = (trace.tenant, trace.key_id, usage.target)
        sums = self._sums.setdefault(key, [0, 0, 0, 0])
        amounts = (1, int(trace.cached), usage.input_tokens, usage.output_tokens)
        for place, amount in enumerate(amounts):
            sums[place] += amount

    def rows(self) -> list[MeteredUsage]:
        """One row for each key and target."""
        return [
            MeteredUsage(self._writer, self._first, self._after, self._since, *key, *sums)
            for key, sums in self._sums.items()
        ]
