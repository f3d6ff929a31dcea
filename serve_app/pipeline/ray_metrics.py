"""Per-stage metrics through Ray's metrics API: the Ray dashboard and Prometheus show them.

What Ray publishes is `ray_headrace_stage_*`, labelled by stage. Observations are gathered here and
handed to Ray once a second, so that a request does not pay for its own statistics: counters are
exact, histograms are fed a uniform sample of each second.
"""

from __future__ import annotations

import asyncio
import random

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.telemetry.reference import PUBLISHED_SHARES
from serve_app.pipeline.breaker import BreakerState

_LATENCY_MS = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
_BATCH = [1, 2, 4, 8, 16, 32, 64, 128]
_FLUSH_S = 1.0
_SAMPLE = 40


class RayStageMetrics:
    """Implements `serve_app.pipeline.metrics.StageMetrics` for one stage in one gateway replica."""

    def __init__(self, stage: str) -> None:
        tags = ("stage",)
        self._tags = {"stage": stage}
        self._latency = Histogram(
            "headrace_stage_latency_ms", "Time of a stage's step", _LATENCY_MS, tags
        )
        self._batch = Histogram("headrace_stage_batch", "Envelopes in a call", _BATCH, tags)
        self._queue = Gauge("headrace_stage_queue", "Envelopes waiting for a call", tags)
        self._steps = Counter("headrace_stage_steps", "Steps taken", tags)
        self._errors = Counter("headrace_stage_errors", "Steps that did not end well", tags)
        self._time = Counter("headrace_stage_ms", "Milliseconds spent in a stage's steps", tags)
        self._published = Gauge(
            "headrace_stage_published_share",
            "Percent of stage time, published retail figures",
            tags,
        )
        self._breaker = Gauge("headrace_stage_breaker", "0 closed, 1 half open, 2 open", tags)
        self._latencies, self._batches = _Sample(), _Sample()
        self._failed, self._queued, self._state = 0, 0, BreakerState.CLOSED
        self._flusher: asyncio.TimerHandle | None = None

    def passed(self, ms: float, outcome: str, breaker: BreakerState) -> None:
        """See the protocol."""
        self._latencies.add(ms)
        self._failed += outcome != "ok"
        self._state = breaker
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def batched(self, size: int) -> None:
        """See the protocol."""
        self._batches.add(size)

    def queued(self, length: int) -> None:
        """See the protocol."""
        self._queued = length

    def _flush(self) -> None:
        self._flusher = None
        latencies, self._latencies = self._latencies, _Sample()
        batches, self._batches = self._batches, _Sample()
        for value in latencies.kept:
            self._latency.observe(value, self._tags)
        for size in batches.kept:
            self._batch.observe(size, self._tags)
        self._steps.inc(latencies.count, self._tags)
        # Ray refuses to add nothing.
        self._time.inc(max(latencies.total, 1e-9), self._tags)
        if self._failed:
            self._errors.inc(self._failed, self._tags)
            self._failed = 0
        self._queue.set(self._queued, self._tags)
        self._breaker.set(int(self._state), self._tags)
        if (published := PUBLISHED_SHARES.get(self._tags["stage"])) is not None:
            self._published.set(published, self._tags)


class _Sample:
    """A uniform sample of a stream (Vitter 1985, algorithm R), its count and its sum."""

    def __init__(self) -> None:
        self.kept: list[float] = []
        self.count, self.total = 0, 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        if len(self.kept) < _SAMPLE:
            self.kept.append(value)
        elif (place := random.randrange(self.count)) < _SAMPLE:
            self.kept[place] = value
