"""The road a request walks: the stages in order, the engine between them, each exactly once.

Owns the order and the hand-over of the vault. It knows no HTTP and no Ray.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from cluster.control.protocol import RoutingTable, ServedAdapter
from cluster.privacy import restore
from serve_app.protocol import (
    AdapterGone,
    Block,
    Delta,
    Engine,
    Envelope,
    Generation,
    GenerationRequest,
    PromptTooLong,
    Span,
)
from serve_app.stages.governance import StreamGuard

Hop = Callable[[Envelope], Awaitable[Envelope]]

_BEFORE = ("data_prep", "governance", "routing", "policy", "context")
_AFTER = ("governance", "monitoring", "audit")
_SWAP_RETRIES = 8


class Road:
    """Walks envelopes through the graph."""

    def __init__(
        self, hops: dict[str, Hop], engine: Engine, table: Callable[[], RoutingTable]
    ) -> None:
        self._hops = hops
        self._engine = engine
        self._table = table

    async def answer(self, envelope: Envelope) -> tuple[Envelope, str]:
        """The finished envelope and the text for the client, its own values restored.

        A refused request comes back with `block` set; it has passed audit all the same.
        """
        envelope, vault = await self._inbound(envelope)
        if envelope.block is None:
            started = time.perf_counter()
            envelope.generation = await self._generate(envelope)
            _span(envelope, started)
        envelope = await self._outbound(envelope)
        return envelope, restore(envelope.answer, vault)

    async def stream(self, envelope: Envelope) -> AsyncGenerator[str | Envelope, None]:
        """Pieces of the answer as they come, then the finished envelope.

        The first item is the envelope before generation, so that a refusal can still be an HTTP
        error.
        """
        envelope, vault = await self._inbound(envelope)
        yield envelope
        if envelope.block is None:
            started = time.perf_counter()
            guard = StreamGuard(vault, envelope.max_discount)
            async with aclosing(self._stream(envelope)) as items:
                async for item in items:
                    if isinstance(item, Generation):
                        envelope.generation = item
                    elif text := guard.push(item.text):
                        yield text
            if text := guard.finish():
                yield text
            _span(envelope, started)
        yield await self._outbound(envelope)

    async def _inbound(self, envelope: Envelope) -> tuple[Envelope, dict[str, str]]:
        vault: dict[str, str] = {}
        for stage in _BEFORE:
            envelope = await self._hops[stage](envelope)
            if stage == "governance":
                # The values stay in this process: no later stage and no log needs them.
                vault, envelope.vault = envelope.vault, {}
        return envelope, vault

    async def _outbound(self, envelope: Envelope) -> Envelope:
        for stage in _AFTER:
            if stage != "governance" or envelope.generation is not None:
                envelope = await self._hops[stage](envelope)
        return envelope

    def _resolve(self, envelope: Envelope) -> ServedAdapter | None:
        """The version that answers now; an adapter that is not live yields to the next best."""
        route = envelope.route
        assert route is not None
        name = route.adapter
        if name is not None and name not in self._table().live and route.instead_of:
            envelope.warnings.append(f"adapter {name} is not live; the router's choice answered")
            name = route.instead_of
        if name is None:
            return None
        wanted = envelope.model if envelope.model.partition("@")[0] == name else name
        adapter = self._table().resolve(wanted)
        if adapter is None and wanted == envelope.model:
            envelope.block = Block(
                404, "model_not_found", f"model {wanted!r} is not served", "model"
            )
        elif adapter is None:
            envelope.warnings.append(f"adapter {name} is not live; the base model answered")
        return adapter

    def _request(self, envelope: Envelope, adapter: ServedAdapter | None) -> GenerationRequest:
        return GenerationRequest(
            envelope.trace_id, tuple(envelope.prompt), envelope.sampling, adapter
        )

    async def _generate(self, envelope: Envelope) -> Generation | None:
        for _ in range(_SWAP_RETRIES):
            adapter = self._resolve(envelope)
            if envelope.block is not None:
                return None
            try:
                return await self._engine.complete(self._request(envelope, adapter))
            except AdapterGone:
                continue  # swapped out between the look-up and the engine: look again
            except PromptTooLong as error:
                envelope.block = _too_long(error)
                return None
        envelope.block = _swapping()
        return None

    async def _stream(self, envelope: Envelope) -> AsyncGenerator[Delta | Generation, None]:
        for _ in range(_SWAP_RETRIES):
            adapter = self._resolve(envelope)
            if envelope.block is not None:
                return
            try:
                async for item in self._engine.stream(self._request(envelope, adapter)):
                    yield item
                return
            except AdapterGone:
                continue  # raised before the first token, so nothing has been shown
            except PromptTooLong as error:
                envelope.block = _too_long(error)
                return
        envelope.block = _swapping()


def _too_long(error: PromptTooLong) -> Block:
    return Block(400, "context_length_exceeded", str(error), "messages")


def _swapping() -> Block:
    return Block(503, "adapter_unavailable", "the adapter is being replaced; try again")


def _span(envelope: Envelope, started: float) -> None:
    ms = (time.perf_counter() - started) * 1000
    outcome = "ok" if envelope.generation else "refused"
    envelope.spans.append(Span("generation", round(ms, 3), 1, outcome))
