"""The road a request walks: the stages in order, the engine between them, each exactly once.

Owns the order and the hand-over of the vault. It knows no HTTP and no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from cluster.control.protocol import RoutingTable, ServedAdapter
from serve_app.cache import ResponseCache, Slot
from serve_app.gateway import blocks, notes
from serve_app.gateway.budgets import Ended, most_read
from serve_app.gateway.pieces import GuardedTokens, Piece
from serve_app.gateway.trials import Trials
from serve_app.handoff import Pending
from serve_app.protocol import (
    AdapterGone,
    AdapterKilled,
    Block,
    Delta,
    Engines,
    Envelope,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
    Usage,
)
from serve_app.steps import AFTER, AUDIT, BEFORE, DATA_PREP, MASK, ROUTE, Step, settle
from serve_app.stream_guard import StreamGuard

logger = logging.getLogger(__name__)


class Hop(Protocol):
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
        """Do the step; see `serve_app.handoff.Handoff`."""
        ...

    def start(self, envelope: Envelope) -> Pending:
        """Have the step begin; for those that are not immediate."""
        ...

    async def finish(self, envelope: Envelope, pending: Pending) -> None:
        """Wait for a step that began."""

    def abandon(self, pending: Pending) -> None:
        """Give up a step that began, if it has not ended."""
        ...


TableSource = Callable[[], RoutingTable]
"""The routing table of this moment."""

_SWAP_RETRIES = 8
#: Longest that a request waits for news of swaps, all its tries together.
_NEWS_S = 1.0
_LOOK_S = 0.005


def _nobody(_envelope: Envelope) -> None:
    """Is told of nothing."""


@dataclass
class _Progress:
    recording: bool = False
    """Audit has been asked to record this request, and does so whoever still waits for it."""


@dataclass
class _Walk:
    """One request's tries to be answered."""

    patience: float
    """Seconds it still waits for news of swaps."""
    spared: bool = False
    """Its candidate was not to be had: the live version answers."""
    failed: GenerationRequest | None = None
    """What its candidate failed on, until it is known whether the live version does too."""
    counts: bool = False
    """Whether its version was picked for its user, as both versions' answers on trial are."""


class Road:
    """Walks envelopes through the graph. `hops` are by step name."""

    def __init__(
        self,
        hops: Mapping[str, Hop],
        engine: Engines,
        table: Callable[[], RoutingTable],
        cache: ResponseCache,
        *,
        base: str,
        window: int,
        masks_answers: bool = False,
    ) -> None:
        """`base` is the base model's name, `window` the most tokens of a prompt and its answer;
        `masks_answers`, whether clients get placeholders for values that an answer brings."""
        self._masks_answers = masks_answers
        self._cache = cache
        self._base, self._window = base, window
        self._hops = hops
        self._engine = engine
        self._table = table
        self.trials = Trials(engine, table)
        self._abandoned: set[asyncio.Task[None]] = set()
        self._under_way = 0

    def full(self, limit: int) -> bool:
        """Whether one more request would be over `limit`, or wait behind a queue at its bound."""
        return self._under_way >= limit or any(hop.full for hop in self._hops.values())

    async def answer(self, envelope: Envelope, ended: Ended = _nobody) -> tuple[Envelope, str]:
        """The finished envelope and the text for the client, its own values restored.

        A refused request comes back with `block` set; it has passed audit all the same. `ended`
        hears of the envelope when nothing more is done for it, also when the client went away.
        """
        vault: dict[str, str] = {}
        async with self._audited(envelope, ended) as progress:
            await self._inbound(envelope, vault)
            if envelope.block is None:
                started = time.perf_counter()
                envelope.generation = await self._generate(envelope)
                notes.span(envelope, started)
            await self._outbound(envelope, progress)
        return envelope, notes.restored(envelope, vault)

    async def stream(
        self, envelope: Envelope, ended: Ended = _nobody
    ) -> AsyncGenerator[Piece | Envelope, None]:
        """Pieces of the answer as they come, then the finished envelope; `ended` as in `answer`.

        The first item is the envelope before generation, so that a refusal can still be an HTTP
        error.
        """
        vault: dict[str, str] = {}
        async with self._audited(envelope, ended) as progress:
            await self._inbound(envelope, vault)
            yield envelope
            if envelope.block is None:
                started = time.perf_counter()
                guard = self._guard(envelope, vault)
                tokens = GuardedTokens(guard)
                async with aclosing(self._stream(envelope)) as items:
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
        """Record what does not walk the road: a refusal before it, or feedback after it."""
        async with self._audited(envelope) as progress:
            progress.recording = True
            await self._record(envelope)

    async def embed(self, envelope: Envelope, ended: Ended = _nobody) -> Envelope:
        """The envelope with its embedding, or with `block` set; recorded like any request."""
        async with self._audited(envelope, ended) as progress:
            for group in ((DATA_PREP,), (MASK,), (ROUTE,)):
                await self._step(group, envelope, {})
                if envelope.block is not None:
                    envelope.usage = None
                    break
            await self._outbound(envelope, progress)
        return envelope

    async def _inbound(self, envelope: Envelope, vault: dict[str, str]) -> None:
        """Up to the prompt. The masked values go to `vault`, in this process, and nowhere else."""
        for group in BEFORE:
            await self._step(group, envelope, vault)
            if envelope.block is not None:
                return

    async def _step(
        self, group: tuple[Step, ...], envelope: Envelope, vault: dict[str, str]
    ) -> None:
        await self._side_by_side(group, envelope)
        vault.update(envelope.vault)
        envelope.vault = {}

    def _guard(self, envelope: Envelope, vault: dict[str, str]) -> StreamGuard:
        return StreamGuard(
            vault,
            envelope.max_discount,
            masks=self._masks_answers,
            structured=envelope.structured,
            taken=envelope.placeholders,
            keep=envelope.listed,
        )

    async def _outbound(self, envelope: Envelope, progress: _Progress) -> None:
        if envelope.generation is not None:
            for group in AFTER:
                await self._side_by_side(group, envelope)
        progress.recording = True
        await self._record(envelope)

    async def _side_by_side(self, group: tuple[Step, ...], envelope: Envelope) -> None:
        hops = [self._hops[step.name] for step in group]
        under_way = [(hop, hop.start(envelope)) for hop in hops if not hop.immediate]
        try:
            for hop in hops:
                if hop.immediate:
                    await hop(envelope)
            for hop, pending in under_way:
                await hop.finish(envelope, pending)
        finally:
            for hop, pending in under_way:
                hop.abandon(pending)
        settle(envelope)

    @asynccontextmanager
    async def _audited(
        self, envelope: Envelope, ended: Ended = _nobody
    ) -> AsyncIterator[_Progress]:
        """Record the request of a client that went away too; its engine request ends at once."""
        progress = _Progress()
        self._under_way += 1
        try:
            yield progress
        except (asyncio.CancelledError, GeneratorExit):
            if not progress.recording:
                envelope.block = Block(499, "client_closed_request", "the client went away")
                task = asyncio.ensure_future(self._record(envelope))
                self._abandoned.add(task)
                task.add_done_callback(self._abandoned.discard)
            raise
        finally:
            self._under_way -= 1
            ended(envelope)

    async def _record(self, envelope: Envelope) -> None:
        notes.withhold_unchecked(envelope)
        generation = envelope.generation
        if generation is not None and generation.tokens is not None:
            # They spell the answer in clear: for its client, not for the log.
            envelope.generation = replace(generation, tokens=None)
        await self._hops[AUDIT.name](envelope)
        envelope.generation = generation

    def _resolve(self, envelope: Envelope, walk: _Walk) -> ServedAdapter | None:
        """The version that answers now; an adapter that is not live yields to the next best."""
        walk.counts = False
        route = envelope.route
        # Without a route (routing may fail open) the client's own choice stands, else the base.
        table = self._table()
        name = route.adapter if route else notes.named(envelope, table)
        if name is not None and route and route.instead_of and not table.serves(envelope, name):
            envelope.warnings.append(f"adapter {name} is not live; the router's choice answered")
            name = route.instead_of
        named = envelope.model.partition("@")[0] == name
        if route and name in table.access and not named and not table.reaches(envelope, name):
            # In the record as well: a tenant's traffic must not train another tenant's adapter,
            # nor may the answer name that adapter or its intents.
            envelope.route = replace(
                route, adapter=None, instead_of=None, intent="", reason="no adapter within reach"
            )
            name = None
        if name is None:
            return None
        wanted = envelope.model if named else name
        adapter = table.resolve(envelope, wanted)
        if adapter is None and wanted == envelope.model:
            envelope.block = blocks.unserved(table, envelope, wanted)
        elif adapter is None:
            envelope.warnings.append(f"adapter {name} is not live; the base model answered")
        if adapter is None or wanted != name:
            return adapter  # whoever names a version gets that one
        if walk.spared:
            return adapter
        walk.counts = True
        return self.trials.pick(adapter, notes.user(envelope), notes.account_of(envelope))

    def _request(self, envelope: Envelope, adapter: ServedAdapter | None) -> GenerationRequest:
        return GenerationRequest(
            envelope.trace_id,
            tuple(envelope.prompt or envelope.messages),
            replace(envelope.sampling, tools=envelope.tools),
            adapter,
            envelope.chat,
            envelope.tenant,
        )

    def _cached(
        self, envelope: Envelope, adapter: ServedAdapter | None
    ) -> tuple[Slot | None, Generation | None]:
        """The cache's place for this prompt and what it holds; says so on the envelope."""
        slot = self._cache.slot(envelope, adapter.label if adapter else "base")
        found = self._cache.get(slot, time.monotonic()) if slot else None
        envelope.cache = "off" if slot is None else "hit" if found else "miss"
        if found is not None:
            envelope.usage = Usage(found.version, 0, 0)
        return slot, found

    def _most_used(self, envelope: Envelope, request: GenerationRequest, written: int) -> Usage:
        """What the engine may have done of `request` by the time nobody waits for it any more."""
        version = request.adapter.label if request.adapter else self._base
        read = most_read(request.messages, request.sampling, self._window)
        return replace(
            notes.usage(envelope, version, read, min(written, self._window)), exact=False
        )

    async def _generate(self, envelope: Envelope) -> Generation | None:
        walk = _Walk(_NEWS_S)
        for _ in range(_SWAP_RETRIES):
            known = self._table().generation
            adapter = self._resolve(envelope, walk)
            if envelope.block is not None:
                return None
            slot, found = self._cached(envelope, adapter)
            if found is not None:
                return found
            request = self._request(envelope, adapter)
            try:
                found = await self._engine.complete(request)
            except AdapterGone:
                # Swapped out between the look-up and the engine.
                await self._gone(adapter, known, walk)
                continue
            except asyncio.CancelledError:
                envelope.usage = self._most_used(envelope, request, request.sampling.max_tokens)
                raise
            except Exception as error:  # its fault costs this request, which is still recorded
                if self._answered_by_live(request, error, walk):
                    continue
                self._faulted(envelope, request, error, walk)
                return None
            notes.used(envelope, found.version, found)
            self._saw(envelope, request, found, walk)
            if slot is not None:
                self._cache.put(slot, found, time.monotonic())
            return found
        envelope.block = blocks.swapping()
        return None

    async def _stream(self, envelope: Envelope) -> AsyncGenerator[Delta | Generation, None]:
        walk = _Walk(_NEWS_S)
        for _ in range(_SWAP_RETRIES):
            known = self._table().generation
            adapter = self._resolve(envelope, walk)
            if envelope.block is not None:
                return
            slot, found = self._cached(envelope, adapter)
            if found is not None:
                yield Delta(found.text)
                yield found
                return
            request, shown = self._request(envelope, adapter), False
            version = adapter.label if adapter else self._base
            try:
                async with aclosing(
                    self._engine.stream(request, partial(notes.used, envelope, version))
                ) as items:
                    async for item in items:
                        if isinstance(item, Generation):
                            self._saw(envelope, request, item, walk)
                            if slot is not None:
                                self._cache.put(slot, item, time.monotonic())
                        shown = True
                        yield item
                return
            except AdapterGone:
                # Raised before the first token: nothing has been shown.
                await self._gone(adapter, known, walk)
                continue
            except (asyncio.CancelledError, GeneratorExit):
                envelope.usage = envelope.usage or self._most_used(envelope, request, 0)
                raise
            except Exception as error:  # as above; what was streamed is followed by the error
                if not shown and self._answered_by_live(request, error, walk):
                    continue
                self._faulted(envelope, request, error, walk)
                return
        envelope.block = blocks.swapping()

    async def _gone(self, adapter: ServedAdapter | None, known: int, walk: _Walk) -> None:
        """Wait for news of a version that no replica holds; without any, a candidate's user gets
        the live version, and the rollout hears nothing of it."""
        walk.patience = await self._newer(known, walk.patience)
        walk.spared = walk.spared or (
            self._table().generation <= known and self.trials.tried(adapter)
        )

    async def _newer(self, known: int, patience: float) -> float:
        """Wait `patience` seconds at most for a table newer than `known`; what is left of them.

        What this gateway was not told of yet, it would only be refused again.
        """
        deadline = time.monotonic() + patience
        # Nobody announces a table here, and a swap is rare.
        while self._table().generation <= known and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        return max(0.0, deadline - time.monotonic())

    def _answered_by_live(self, request: GenerationRequest, error: Exception, walk: _Walk) -> bool:
        """Whether the live version answers a request that the candidate failed on.

        Its users must not pay for a rollout. And where the live version fails as well, it is the
        request or the engine that is at fault, and no evidence: a caller could send what fails.
        """
        if isinstance(error, AdapterKilled | PromptTooLong | NotSupported):
            return False
        if not walk.counts or not self.trials.tried(request.adapter):
            return False
        walk.spared, walk.failed = True, request
        return True

    def _saw(
        self,
        envelope: Envelope,
        request: GenerationRequest,
        found: Generation,
        walk: _Walk,
    ) -> None:
        """Count an answer in the rollout of its adapter, and the candidate's failure before it."""
        if not walk.counts and walk.failed is None:
            return
        who = (notes.user(envelope), notes.account_of(envelope))
        if walk.failed is not None:
            self.trials.saw(walk.failed, None, *who)
        if walk.counts:
            self.trials.saw(request, found, *who)

    def _faulted(
        self, envelope: Envelope, request: GenerationRequest, error: Exception, walk: _Walk
    ) -> None:
        """Say on the envelope why the engine gave no answer."""
        if isinstance(error, AdapterKilled):
            envelope.block = blocks.killed(str(error))
        elif isinstance(error, PromptTooLong | NotSupported):
            envelope.block = blocks.refusal(error)
        else:
            # No evidence: of the candidate's, because the live version failed as well; of the live
            # version's, because nothing else was asked, and the request may be what is at fault.
            envelope.block = blocks.failed(envelope)
