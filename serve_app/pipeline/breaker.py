"""The circuit breaker of a stage: a pure decision on what its last calls came to.

Closed, calls pass. After `failures` faults in a row it opens, and for `cool_s` seconds no call
waits for the stage. Then one call at a time is let through; the first good one closes it.
"""

from __future__ import annotations

from enum import IntEnum

from serve_app.config import BreakerConfig


class BreakerState(IntEnum):
    """Numbered for the metric that shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Remembers the faults in a row, and since when the circuit is open. Times are seconds."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._faults = 0
        self._opened_at: float | None = None
        self._probing_since: float | None = None

    def state(self, now: float) -> BreakerState:
        """The state at `now`."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        cooled = now - self._opened_at >= self._config.cool_s
        return BreakerState.HALF_OPEN if cooled else BreakerState.OPEN

    def allows(self, now: float) -> bool:
        """Whether a call may be made at `now`; half open hands out one probe at a time."""
        state = self.state(now)
        if state is not BreakerState.HALF_OPEN:
            return state is BreakerState.CLOSED
        # A probe without an outcome is given up after another cooling time.
        if self._probing_since is not None and now - self._probing_since < self._config.cool_s:
            return False
        self._probing_since = now
        return True

    def record(self, good: bool, now: float) -> None:
        """Take in the outcome of a call that ended at `now`."""
        if good:
            self._faults, self._opened_at, self._probing_since = 0, None, None
            return
        self._faults += 1
        if self._probing_since is not None or self._faults >= self._config.failures:
            self._opened_at, self._probing_since = now, None
