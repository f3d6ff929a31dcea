"""How the load is shared between adapters, from metered usage. Pure: `now` is passed in."""

from __future__ import annotations

from collections.abc import Iterable

#: After so long a request counts half.
_HALF_LIFE_S = 300.0
_NEGLIGIBLE = 1e-3


class LoadShares:
    """An exponentially decaying count of each adapter's output tokens and requests."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}

    def add(self, name: str, amount: float, now: float) -> None:
        """Count `amount` of work done by adapter `name`."""
        self._counts[name] = (self._now(name, now) + amount, now)

    def shares(self, names: Iterable[str], now: float) -> dict[str, float]:
        """Each one's share of the load of `names`, busiest first; all zero while there is none."""
        counts = {name: self._now(name, now) for name in names}
        total = sum(counts.values()) or 1.0
        for name in [name for name in self._counts if self._now(name, now) < _NEGLIGIBLE]:
            del self._counts[name]
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {name: count / total for name, count in ordered}

    def _now(self, name: str, now: float) -> float:
        count, at = self._counts.get(name, (0.0, now))
        return float(count * 0.5 ** ((now - at) / _HALF_LIFE_S))
