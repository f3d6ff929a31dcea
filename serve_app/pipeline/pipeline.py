"""The order of a request's steps: the stages, generation between them, each exactly once.

Owns the order and the hand-over of the vault, and nothing of how a stage is called or an answer
generated. It knows no HTTP and no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from cluster.records.trace import Refusal
from serve_app.generation.attempts import Attempts
from serve_app.pipeline import notes
from serve_app.pipeline.batcher import Pending
from serve_app.pipeline.pieces import GuardedTokens, Piece
from serve_app.pipeline.steps import AFTER, AUDIT, BEFORE, DATA_PREP, MASK, ROUTE, Step, settle
from serve_app.protocol import Envelope, Generation
from serve_app.stream_guard import StreamGuard

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    """Does one step on an envelope."""

    @property
    def full(self) -> bool:
        """Whether what waits for this step is at its bound."""
        ...

    @property
    def immediate(self) -> bool:
        """Whether the step is done without waiting for anything, so that nothing runs beside it."""
        ...

    def __call__(self, envelope: Envelope) -> Awaitable[None]:
        """Do the step; see `serve_app.pipeline.batcher.StageBatcher`."""
        ...

    def start(self, envelope: Envelope) -> Pending:
        """Have the step begin; for those that are not immediate."""
        ...

    async def finish(self, envelope: Envelope, pending: Pending) -> None:
        """Wait for a step that began."""

    def abandon(self, pending: Pending) -> None:
        """Give up a step that began, if it has not ended."""
        ...


OnEnd = Callable[[Envelope], None]
"""Called with each envelope once nothing more is done for it, however it ended."""


def _ignore(_envelope: Envelope) -> None:
    """The callback of those who need none."""


@dataclass
class _Progress:
    recording: bool = False
    """Audit has been asked to record this request, and does so whether its client waits or not."""


class Pipeline:
    """Takes envelopes through the steps. `runners` are by step name."""

    def __init__(
        self, runners: Mapping[str, StepRunner], attempts: Attempts, *, masks_answers: bool = False
    ) -> None:
        """`masks_answers` is whether clients get placeholders for values that an answer brings."""
        self._runners, self._attempts = runners, attempts
        self._masks_answers = masks_answers
        self._abandoned: set[asyncio.Task[None]] = set()
        self._in_progress = 0

    def full(self, limit: int) -> bool:
        """Whether one more request would be over `limit`, or wait behind a queue at its bound."""
        return self._in_progress >= limit or any(runner.full for runner in self._runners.values())

    async def answer(self, envelope: Envelope, on_end: OnEnd = _ignore) -> tuple[Envelope, str]:
        """The finished envelope and the text for the client, its own values restored.

        A refused request comes back with `refusal` set; it has passed audit all the same. `on_end`
        is called with the envelope once it is finished, also after the client disconnected.
        """
        vault: dict[str, str] = {}
        async with self._audited(envelope, on_end) as progress:
            await self._inbound(envelope, vault)
            if envelope.refusal is None:
                started = time.perf_counter()
                envelope.generation = await self._attempts.whole(envelope)
                notes.span(envelope, started)
            await self._outbound(envelope, progress)
        return envelope, notes.restored(envelope, vault)

    async def stream(
        self, envelope: Envelope, on_end: OnEnd = _ignore
    ) -> AsyncGenerator[Piece | Envelope, None]:
        """Pieces of the answer as they come, then the finished envelope; `on_end` as in `answer`.

        The first item is the envelope before generation, so that a refusal can still be an HTTP
        error.
        """
        vault: dict[str, str] = {}
        async with self._audited(envelope, on_end) as progress:
            await self._inbound(envelope, vault)
            yield envelope
            if envelope.refusal is None:
                started = time.perf_counter()
                guard = self._guard(envelope, vault)
                tokens = GuardedTokens(guard)
                async with aclosing(self._attempts.streamed(envelope)) as items:
                    async for item in items:
                        if isinstance(item, Generation):
                            envelope.generation = item
                        else:
                            tokens.add(item)
                            if text := guard.push(item.text):
                                yield Piece(text, tokens.shown())
                if text := guard.finish():
                    yield Piece(text, tokens.shown())
                notes.span(envelope, started)
            await self._outbound(envelope, progress)
        yield envelope

    async def note(self, envelope: Envelope) -> None:
        """Record what is no request: a refusal before the first step, or feedback."""
        async with self._audited(envelope) as progress:
            progress.recording = True
            await self._record(envelope)

    async def embed(self, envelope: Envelope, on_end: OnEnd = _ignore) -> Envelope:
        """The envelope with its embedding, or with `refusal` set; recorded like any request."""
        async with self._audited(envelope, on_end) as progress:
            for group in ((DATA_PREP,), (MASK,), (ROUTE,)):
                await self._step(group, envelope, {})
                if envelope.refusal is not None:
                    envelope.usage = None
                    break
            await self._outbound(envelope, progress)
        return envelope

    async def _inbound(self, envelope: Envelope, vault: dict[str, str]) -> None:
        """Up to the prompt. The masked values go to `vault`, in this process, and nowhere else."""
        for group in BEFORE:
            await self._step(group, envelope, vault)
            if envelope.refusal is not None:
                return

    async def _step(
        self, group: tuple[Step, ...], envelope: Envelope, vault: dict[str, str]
    ) -> None:
        await self._run_concurrently(group, envelope)
        vault.update(envelope.vault)
        envelope.vault = {}

    def _guard(self, envelope: Envelope, vault: dict[str, str]) -> StreamGuard:
        return StreamGuard(
            vault,
            envelope.constraints,
            masks=self._masks_answers,
            structured=envelope.structured,
            taken=envelope.placeholders,
            keep=envelope.listed,
        )

    async def _outbound(self, envelope: Envelope, progress: _Progress) -> None:
        if envelope.generation is not None:
            for group in AFTER:
                await self._run_concurrently(group, envelope)
        progress.recording = True
        await self._record(envelope)

    async def _run_concurrently(self, group: tuple[Step, ...], envelope: Envelope) -> None:
        runners = [self._runners[step.name] for step in group]
        started = [(one, one.start(envelope)) for one in runners if not one.immediate]
        try:
            for one in runners:
                if one.immediate:
                    await one(envelope)
            for one, pending in started:
                await one.finish(envelope, pending)
        finally:
            for one, pending in started:
                one.abandon(pending)
        settle(envelope)

    @asynccontextmanager
    async def _audited(
        self, envelope: Envelope, on_end: OnEnd = _ignore
    ) -> AsyncIterator[_Progress]:
        """Record the request of a client that went away too; its engine request ends at once."""
        progress = _Progress()
        self._in_progress += 1
        try:
            yield progress
        except (asyncio.CancelledError, GeneratorExit):
            if not progress.recording:
                envelope.refusal = Refusal(499, "client_closed_request", "the client went away")
                task = asyncio.ensure_future(self._record(envelope))
                self._abandoned.add(task)
                task.add_done_callback(self._abandoned.discard)
            raise
        finally:
            self._in_progress -= 1
            on_end(envelope)

    async def _record(self, envelope: Envelope) -> None:
        notes.withhold_unchecked(envelope)
        generation = envelope.generation
        if generation is not None and generation.tokens is not None:
            # They spell the answer in clear: for its client, not for the log.
            envelope.generation = replace(generation, tokens=None)
        await self._runners[AUDIT.name](envelope)
        envelope.generation = generation
