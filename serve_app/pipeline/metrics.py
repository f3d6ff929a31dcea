"""Per-stage measurements: what is measured, and a double that measures nothing."""

from __future__ import annotations

from typing import Protocol

from serve_app.pipeline.breaker import BreakerState


class StageMetrics(Protocol):
    """Receives the measurements of a stage. Called on the request's path: it must not block."""

    def passed(self, ms: float, outcome: str, breaker: BreakerState) -> None:
        """One envelope passed in `ms` milliseconds, with the outcome its span names."""
        ...

    def batched(self, size: int) -> None:
        """A call with `size` envelopes left."""
        ...

    def queued(self, length: int) -> None:
        """`length` envelopes wait for a call."""
        ...


class _NoMetrics:
    def passed(self, ms: float, outcome: str, breaker: BreakerState) -> None:
        pass

    def batched(self, size: int) -> None:
        pass

    def queued(self, length: int) -> None:
        pass


NO_METRICS: StageMetrics = _NoMetrics()
