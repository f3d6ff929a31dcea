"""Coalesced hand-off to a stage: what has queued while calls were in flight leaves as one call.

An idle stage adds no wait; a busy one shares each hop among a batch. Owns batching, the latency
budget and the failure rule; it knows neither Ray nor what the stage does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from serve_app.config import StageConfig
from serve_app.protocol import Block, Envelope, Span

StageCall = Callable[[list[Envelope]], Awaitable[list[Envelope]]]


class Handoff:
    """Calls one stage for many concurrent requests."""

    def __init__(self, stage: str, call: StageCall, config: StageConfig) -> None:
        self._stage = stage
        self._call = call
        self._config = config
        self._queue: deque[tuple[Envelope, asyncio.Future[tuple[Envelope, int]]]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()

    async def __call__(self, envelope: Envelope) -> Envelope:
        """`envelope` as the stage returned it, with this step's span added.

        A stage that fails or runs past its budget never raises here: by its failure rule the
        envelope goes on with a warning, or is blocked with 503.
        """
        started = time.perf_counter()
        future: asyncio.Future[tuple[Envelope, int]] = asyncio.get_running_loop().create_future()
        self._queue.append((envelope, future))
        self._dispatch()
        batch, outcome = 0, "ok"
        try:
            async with asyncio.timeout(self._config.budget_ms / 1000):
                envelope, batch = await future
        except TimeoutError:
            outcome = "late"
        except Exception as error:  # a stage's fault must cost its own step, not the gateway
            outcome = f"failed: {type(error).__name__}"
        if outcome != "ok":
            self._apply_failure_rule(envelope, outcome)
        elapsed = (time.perf_counter() - started) * 1000
        envelope.spans.append(Span(self._stage, round(elapsed, 3), batch, outcome))
        return envelope

    def _apply_failure_rule(self, envelope: Envelope, outcome: str) -> None:
        if self._config.on_failure == "open":
            envelope.warnings.append(f"{self._stage}: {outcome}; continued without it")
        elif envelope.block is None:
            envelope.block = Block(503, "stage_unavailable", f"stage {self._stage} is unavailable")

    def _dispatch(self) -> None:
        while self._queue and len(self._in_flight) < self._config.max_in_flight:
            size = min(len(self._queue), self._config.max_batch)
            batch = [self._queue.popleft() for _ in range(size)]
            waiting = [pair for pair in batch if not pair[1].done()]
            if waiting:
                task = asyncio.ensure_future(self._send(waiting))
                self._in_flight.add(task)
                task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._dispatch()

    async def _send(
        self, batch: list[tuple[Envelope, asyncio.Future[tuple[Envelope, int]]]]
    ) -> None:
        try:
            results = await self._call([envelope for envelope, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"stage {self._stage} returned {len(results)} of {len(batch)}")
        except Exception as error:  # handed to each waiting request, which applies the rule
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result((result, len(batch)))
