"""Adaptive batching of calls to a stage: what queued while calls were in flight leaves as one call.

An idle system adds no wait; a busy one shares each call among a batch. Owns batching, bounds, the
latency budget, the circuit breaker and the failure rule; it knows neither Ray nor the stage.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cluster.records.trace import Refusal, Span
from serve_app.config import StageConfig
from serve_app.pipeline.breaker import Breaker
from serve_app.pipeline.metrics import NO_METRICS, StageMetrics
from serve_app.pipeline.steps import Fault, Row, Step, unavailable
from serve_app.protocol import Envelope
from serve_app.tasks import spawn_detached

#: Runs one step on a batch; deadlines are Unix times in seconds. See `steps.run`.
StageCall = Callable[[Step, list[Row], list[float]], Awaitable[list[Any]]]


class BatchSizer:
    """How many steps are under way in one gateway, and how many of them a call should wait for.

    Under load, calls of one request each cost more than they bring: a call waits, within the
    stage's `linger_ms`, for as many requests as are under way a stage. One request or less is no
    reason to wait, so a gateway with little traffic never does.
    """

    def __init__(self, stages: int) -> None:
        """`stages` is how many calls a request passes."""
        self._stages = stages
        self.in_progress = 0

    @property
    def share(self) -> int:
        """Requests in progress a stage."""
        return self.in_progress // self._stages


@dataclass(slots=True)
class Pending:
    """One envelope on its way through a stage."""

    started: float
    row: Row
    deadline: float
    answer: asyncio.Future[tuple[Any, int]] | None
    """The stage's result and the size of its batch; None where the stage was not asked."""
    outcome: str = "ok"
    ended: float = 0.0
    in_progress: bool = True
    lane: StageBatcher | None = None
    """Of `Lanes`: which one it is in."""
    sent: bool = False
    """Whether the stage was asked; what only waited says nothing of the stage."""


class FairQueue:
    """What waits for a call: tenants in turn, each tenant's in order."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Pending]] = OrderedDict()
        self.count = 0
        """How many wait."""

    @property
    def first(self) -> Pending:
        """What `take` would give first."""
        return next(iter(self._of.values()))[0]

    def append(self, tenant: str, pending: Pending) -> None:
        """Add one behind its tenant's others."""
        mine = self._of.get(tenant)
        if mine is None:
            mine = self._of[tenant] = deque()
        mine.append(pending)
        self.count += 1

    def take(self, most: int) -> list[Pending]:
        """Up to `most`: the oldest of each tenant whose turn it is, turn by turn."""
        found = list[Pending]()
        while self._of and len(found) < most:
            tenant, mine = next(iter(self._of.items()))
            # A tenant that waits alone has every turn.
            turns = min(len(mine), most - len(found)) if len(self._of) == 1 else 1
            found += [mine.popleft() for _ in range(turns)]
            if not mine:
                del self._of[tenant]
            else:
                self._of.move_to_end(tenant)
        self.count -= len(found)
        return found


class StageBatcher:
    """Calls one stage for many concurrent requests, for one step of the pipeline."""

    immediate = False

    def __init__(
        self,
        step: Step,
        call: StageCall,
        config: StageConfig,
        *,
        breaker: Breaker | None = None,
        metrics: StageMetrics = NO_METRICS,
        sizer: BatchSizer | None = None,
    ) -> None:
        self.step = step
        self._call = call
        self._config = config
        self._breaker = breaker or Breaker(config.breaker)
        self._metrics = metrics
        self._sizer = sizer or BatchSizer(stages=1_000_000)
        self._timer: asyncio.TimerHandle | None = None
        self._queue = FairQueue()
        self._in_flight: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether a request that came now would only lengthen a queue that is at its bound."""
        return self._queue.count >= self._config.max_queue

    async def __call__(self, envelope: Envelope) -> None:
        """Have the stage do its step on `envelope`, and add the span.

        A stage that fails, runs past its budget or is cut off never raises here: by its failure
        rule the envelope goes on with a warning, or is blocked with 503.
        """
        await self.finish(envelope, self.start(envelope))

    def start(self, envelope: Envelope) -> Pending:
        """Hand `envelope` over without waiting; `finish` or `abandon` what is returned."""
        now = time.perf_counter()
        pending = Pending(now, (), 0.0, None)
        self._sizer.in_progress += 1
        if not self._breaker.allows(now):
            pending.outcome = "breaker open"
        elif self.full:
            pending.outcome = "queue full"
        else:
            pending.row = self.step.take(envelope)
            pending.deadline = time.time() + self._config.budget_ms / 1000
            pending.answer = asyncio.get_running_loop().create_future()
            self._queue.append(envelope.tenant, pending)
            self._dispatch()
        return pending

    async def finish(self, envelope: Envelope, pending: Pending) -> None:
        """Wait for the stage, within its budget, and write what it did to `envelope`."""
        batch = 0
        try:
            if pending.answer is not None:
                batch = await self._receive(envelope, pending, pending.answer)
                if pending.outcome == _LATE.reason and not pending.sent:
                    pending.outcome = "queue full"
                else:
                    self._breaker.record(pending.outcome == "ok", time.perf_counter())
        finally:
            self.abandon(pending)
        self._close(envelope, pending, batch)

    def _close(self, envelope: Envelope, pending: Pending, batch: int) -> None:
        if pending.outcome != "ok":
            self._apply_failure_rule(envelope, pending.outcome)
        elapsed = ((pending.ended or time.perf_counter()) - pending.started) * 1000
        # Counted from its start: a step that ended may wait here for one that runs beside it.
        since = time.perf_counter() - pending.started
        start = (time.time() - envelope.received_at - since) * 1000
        envelope.spans.append(
            Span(self.step.stage, round(elapsed, 3), round(start, 3), batch, pending.outcome)
        )
        self._metrics.passed(elapsed, pending.outcome, self._breaker.state(time.perf_counter()))

    def abandon(self, pending: Pending) -> None:
        """Stop waiting. A client that disconnects is no evidence about the stage."""
        if pending.in_progress:
            pending.in_progress = False
            self._sizer.in_progress -= 1
            if pending.answer is not None:
                pending.answer.cancel()

    async def _receive(
        self, envelope: Envelope, pending: Pending, answer: asyncio.Future[tuple[Any, int]]
    ) -> int:
        left = pending.deadline - time.time()
        timer = asyncio.get_running_loop().call_later(left, _late, answer)
        try:
            result, batch = await answer
        finally:
            timer.cancel()
        pending.outcome = self._apply(envelope, result)
        return batch

    def _apply(self, envelope: Envelope, result: Any) -> str:
        if isinstance(result, Fault):
            return result.reason if result is _LATE else f"failed: {result.reason}"
        self.step.put(envelope, result)
        return "ok"

    def _apply_failure_rule(self, envelope: Envelope, outcome: str) -> None:
        stage = self.step.stage
        if self._config.on_failure == "open":
            envelope.warnings.append(f"{stage}: {outcome}; continued without it")
        elif envelope.refusal is None:
            envelope.refusal = unavailable(stage) if outcome != "queue full" else overloaded()

    def _dispatch(self) -> None:
        while self._queue.count and len(self._in_flight) < self._config.max_in_flight:
            if self._lingers():
                break
            batch = self._queue.take(self._config.max_batch)
            waiting = [item for item in batch if item.answer and not item.answer.done()]
            for item in waiting:
                item.sent = True
            if waiting:
                task = spawn_detached(self._send(waiting))
                self._in_flight.add(task)
                task.add_done_callback(self._sent)
        self._metrics.queued(self._queue.count)

    def _lingers(self) -> bool:
        """Whether to wait for a larger batch; a timer looks again when the wait is over."""
        if self._queue.count >= min(self._sizer.share, self._config.max_batch):
            return False
        left = self._queue.first.started + self._config.linger_ms / 1000 - time.perf_counter()
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

    async def _send(self, batch: list[Pending]) -> None:
        self._metrics.batched(len(batch))
        size = len(batch)
        try:
            results = await self._call(
                self.step, [item.row for item in batch], [item.deadline for item in batch]
            )
            if len(results) != size:
                raise RuntimeError(f"{self.step.stage} returned {len(results)} of {size}")
        except Exception as error:  # goes to each waiting request, which applies the rule
            results, size = [Fault(type(error).__name__)] * size, 0
        ended = time.perf_counter()
        for item, result in zip(batch, results, strict=True):
            item.row = ()
            if item.answer is not None and not item.answer.done():
                item.ended = ended
                item.answer.set_result((result, size))


_LATE = Fault("late")


def _late(answer: asyncio.Future[tuple[Any, int]]) -> None:
    if not answer.done():
        answer.set_result((_LATE, 0))


class LocalStage(StageBatcher):
    """Calls a stage in this process without a queue, where a batch gains nothing.

    The stage runs at once, on the event loop, so no budget could cut it short.
    """

    immediate = True

    async def __call__(self, envelope: Envelope) -> None:
        """See `StageBatcher`."""
        now = time.perf_counter()
        pending, batch = Pending(now, (), math.inf, None), 0
        if not self._breaker.allows(now):
            pending.outcome = "breaker open"
        else:
            try:
                row = self.step.take(envelope)
                (result,) = await self._call(self.step, [row], [pending.deadline])
            except Exception as error:  # as in a hand-off: the step's cost, not the gateway's
                pending.outcome = f"failed: {type(error).__name__}"
            else:
                pending.outcome, batch = self._apply(envelope, result), 1
            self._breaker.record(pending.outcome == "ok", time.perf_counter())
        self._close(envelope, pending, batch)


class Lanes:
    """A batcher with a second queue for envelopes that take much longer than others.

    What a call with one of them takes, the others in its batch and behind it would wait for.
    """

    immediate = False

    def __init__(
        self, others: StageBatcher, long: StageBatcher, takes_long: Callable[[Envelope], bool]
    ) -> None:
        """`takes_long` says the same of an envelope until its step is done."""
        self._others, self._long = others, long
        self._takes_long = takes_long

    @property
    def full(self) -> bool:
        """See `StageBatcher`; where only the long lane is full, others are let in."""
        return self._others.full

    def _of(self, envelope: Envelope) -> StageBatcher:
        return self._long if self._takes_long(envelope) else self._others

    async def __call__(self, envelope: Envelope) -> None:
        """See `StageBatcher`."""
        await self._of(envelope)(envelope)

    def start(self, envelope: Envelope) -> Pending:
        """See `StageBatcher`."""
        lane = self._of(envelope)
        pending = lane.start(envelope)
        pending.lane = lane
        return pending

    async def finish(self, envelope: Envelope, pending: Pending) -> None:
        """See `StageBatcher`."""
        assert pending.lane is not None
        await pending.lane.finish(envelope, pending)

    def abandon(self, pending: Pending) -> None:
        """See `StageBatcher`."""
        self._others.abandon(pending)


def overloaded() -> Refusal:
    """The refusal of a request that would have to wait behind too many others."""
    return Refusal(429, "overloaded", "too many requests are waiting; try again shortly")
