"""How often one key may ask for what costs no tokens. Pure: `now` in seconds is passed in."""

from __future__ import annotations

from collections import OrderedDict

_MAX_KEYS = 4096


class Rates:
    """A bucket a key (the token bucket of traffic shaping): `per_minute`, all of it at once too."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Requests left, and when that was counted. A key that is not here has all of them."""

    def take(self, key: str, now: float) -> float | None:
        """Count one request of `key`; where it may make none, seconds until it may."""
        left, at = self._left.pop(key, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + max(0.0, now - at) * self.per_minute / 60)
        wait = None if left >= 1 else (1 - left) * 60 / self.per_minute
        self._left[key] = (left - 1 if wait is None else left, now)
        while len(self._left) > _MAX_KEYS:
            self._left.popitem(last=False)
        return wait
