"""Coalesced hand-off to a stage: what has queued while calls were in flight leaves as one call.

An idle system adds no wait; a busy one shares each hop among a batch. Owns batching, bounds, the
latency budget, the circuit breaker and the failure rule; it knows neither Ray nor the stage.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from serve_app.breaker import Breaker
from serve_app.config import StageConfig
from serve_app.protocol import Block, Envelope, Span
from serve_app.steps import Fault, Row, Step, unavailable
from serve_app.tasks import apart
from serve_app.telemetry import NO_METRICS, StageMetrics

#: Runs one step on a batch; `deadlines` are seconds since the epoch. See `serve_app.steps.run`.
StageCall = Callable[[Step, list[Row], list[float]], Awaitable[list[Any]]]


class Crowd:
    """How many steps are under way in one gateway, and how many of them a call should wait for.

    Where many requests are between stages, calls that leave with one each cost more than they
    bring: a call waits, within the stage's `linger_ms`, for its share of the crowd. A share of one
    request or less is no reason to wait, so a quiet gateway never does.
    """

    def __init__(self, stations: int) -> None:
        self._stations = stations
        self.walking = 0

    @property
    def share(self) -> int:
        """What one of the stations can expect of those now walking."""
        return self.walking // self._stations


@dataclass
class _Waiting:
    row: Row
    since: float
    deadline: float
    future: asyncio.Future[tuple[Any, int]]


class Handoff:
    """Calls one stage for many concurrent requests, for one step of the road."""

    immediate = False

    def __init__(
        self,
        step: Step,
        call: StageCall,
        config: StageConfig,
        *,
        breaker: Breaker | None = None,
        metrics: StageMetrics = NO_METRICS,
        crowd: Crowd | None = None,
    ) -> None:
        self.step = step
        self._call = call
        self._config = config
        self._breaker = breaker or Breaker(config.breaker)
        self._metrics = metrics
        self._crowd = crowd or Crowd(stations=1_000_000)
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[_Waiting] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether a request that came now would only lengthen a queue that is at its bound."""
        return len(self._queue) >= self._config.max_queue

    async def __call__(self, envelope: Envelope) -> None:
        """Have the stage do its step on `envelope`, and add the span.

        A stage that fails, runs past its budget or is cut off never raises here: by its failure
        rule the envelope goes on with a warning, or is blocked with 503.
        """
        started = time.perf_counter()
        self._crowd.walking += 1
        try:
            batch, outcome = await self._pass(envelope, started)
        finally:
            self._crowd.walking -= 1
        if outcome != "ok":
            self._apply_failure_rule(envelope, outcome)
        elapsed = (time.perf_counter() - started) * 1000
        envelope.spans.append(Span(self.step.stage, round(elapsed, 3), batch, outcome))
        self._metrics.passed(elapsed, outcome, self._breaker.state(time.perf_counter()))

    async def _pass(self, envelope: Envelope, started: float) -> tuple[int, str]:
        batch, outcome = 0, "ok"
        if not self._breaker.allows(started):
            outcome = "breaker open"
        elif self.full:
            outcome = "queue full"
        else:
            try:
                batch, outcome = await self._hand_over(envelope)
            finally:
                # A client that went away says nothing of the stage.
                if outcome != "ok" or batch:
                    self._breaker.record(outcome == "ok", time.perf_counter())
        return batch, outcome

    async def _hand_over(self, envelope: Envelope) -> tuple[int, str]:
        budget = self._config.budget_ms / 1000
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, int]] = loop.create_future()
        row = self.step.take(envelope)
        self._queue.append(_Waiting(row, time.perf_counter(), time.time() + budget, future))
        self._dispatch()
        try:
            async with asyncio.timeout(budget):
                result, batch = await future
        except TimeoutError:
            return 0, "late"
        except Exception as error:  # a stage's fault must cost its own step, not the gateway
            return 0, f"failed: {type(error).__name__}"
        return self._apply(envelope, result, batch)

    def _apply(self, envelope: Envelope, result: Any, batch: int) -> tuple[int, str]:
        if isinstance(result, Fault):
            return batch, f"failed: {result.reason}"
        self.step.put(envelope, result)
        return batch, "ok"

    def _apply_failure_rule(self, envelope: Envelope, outcome: str) -> None:
        stage = self.step.stage
        if self._config.on_failure == "open":
            envelope.warnings.append(f"{stage}: {outcome}; continued without it")
        elif envelope.block is None:
            envelope.block = unavailable(stage) if outcome != "queue full" else overloaded()

    def _dispatch(self) -> None:
        while self._queue and len(self._in_flight) < self._config.max_in_flight:
            if self._lingers():
                break
            size = min(len(self._queue), self._config.max_batch)
            batch = [self._queue.popleft() for _ in range(size)]
            waiting = [item for item in batch if not item.future.done()]
            if waiting:
                task = apart(self._send(waiting))
                self._in_flight.add(task)
                task.add_done_callback(self._sent)
        self._metrics.queued(len(self._queue))

    def _lingers(self) -> bool:
        """Whether to wait for more of the crowd; a timer looks again when the wait is over."""
        if len(self._queue) >= min(self._crowd.share, self._config.max_batch):
            return False
        left = self._queue[0].since + self._config.linger_ms / 1000 - time.perf_counter()
        if left <= 0:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left, self._linger_over)
        return True

    def _linger_over(self) -> None:
        self._timer = None
        self._dispatch()

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._dispatch()

    async def _send(self, batch: list[_Waiting]) -> None:
        self._metrics.batched(len(batch))
        try:
            results = await self._call(
                self.step, [item.row for item in batch], [item.deadline for item in batch]
            )
            if len(results) != len(batch):
                raise RuntimeError(f"{self.step.stage} returned {len(results)} of {len(batch)}")
        except Exception as error:  # handed to each waiting request, which applies the rule
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(error)
            return
        for item, result in zip(batch, results, strict=True):
            if not item.future.done():
                item.future.set_result((result, len(batch)))


class InProcess(Handoff):
    """A hop without a queue, to a stage in this process that gains nothing from a batch.

    The stage runs at once, on the event loop, so no budget could cut it short.
    """

    immediate = True

    async def _hand_over(self, envelope: Envelope) -> tuple[int, str]:
        try:
            (result,) = await self._call(self.step, [self.step.take(envelope)], [math.inf])
        except Exception as error:  # as in a hand-off: the step's cost, not the gateway's
            return 0, f"failed: {type(error).__name__}"
        return self._apply(envelope, result, 1)


def overloaded() -> Block:
    """The refusal of a request that would have to wait behind too many others."""
    return Block(429, "overloaded", "too many requests are waiting; try again shortly")
