"""Every request a replica has under way, and its faults as values.

Knows neither Ray nor an engine library.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from cluster.records.adapter import ServedAdapter
from serve_app.protocol import (
    AdapterGone,
    AdapterKilled,
    Delta,
    EngineFault,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
)

logger = logging.getLogger(__name__)

Answer = Generation | EngineFault
#: Characters of letters and figures that are kept for one piece.
_LONGEST_WORD = 24


class InFlight:
    """What one replica works on. `complete` and `stream` are the engine's own, for one request.

    `ready` is awaited before either with the adapter that is asked for: a replica that started
    while a swap was under way may not hold it yet. `replica` is this one's name.
    """

    def __init__(
        self,
        complete: Callable[[GenerationRequest], Awaitable[Generation]],
        stream: Callable[[GenerationRequest], AsyncIterator[Delta | Generation]],
        ready: Callable[[ServedAdapter], Awaitable[None]] | None = None,
        replica: str = "",
    ) -> None:
        self._complete, self._stream, self._ready = complete, stream, ready
        self._replica = replica
        self.under_way = 0
        """Requests in the engine now: what the deployment is scaled by."""

    @property
    def methods(self) -> dict[str, Callable[..., Any]]:
        """What a gateway may call: see `serve_app.generation.providers.vllm_replicas`."""
        return {"complete": self.complete, "stream": self.stream}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def complete(self, request: GenerationRequest) -> Answer:
        """The answer to one request, or what went wrong."""
        with self._counted():
            try:
                if self._ready and request.adapter:
                    await self._ready(request.adapter)
                return await self._complete(request)
            except Exception as error:  # goes back as a value
                return self._fault(request, error)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Answer]:
        """The items of one request; the last is its generation or what went wrong."""
        with self._counted():
            try:
                if self._ready and request.adapter:
                    await self._ready(request.adapter)
                async with aclosing(self._stream(request)) as items:  # type: ignore[type-var]
                    async for item in _by_word(items):
                        yield item
            except Exception as error:  # as above
                yield self._fault(request, error)

    def _fault(self, request: GenerationRequest, error: Exception) -> EngineFault:
        if isinstance(error, (AdapterGone, AdapterKilled, PromptTooLong, NotSupported)):
            return EngineFault.of(error, self._replica)
        logger.error("the engine failed on %s", request.request_id, exc_info=error)
        return EngineFault("failed", "the engine failed on this request", self._replica)


async def _by_word(
    items: AsyncIterator[Delta | Generation],
) -> AsyncIterator[Delta | Generation]:
    """Pieces of one word as one: masking shows a word when it has ended, and not before."""
    held = Delta("")
    async for item in items:
        if isinstance(item, Delta):
            text, tokens = held.text + item.text, (*held.tokens, *item.tokens)
            held = Delta(text, tokens, item.input_tokens, item.output_tokens)
            word = item.text.isascii() and item.text.isalnum()
            if word and len(held.text) < _LONGEST_WORD:
                continue
        if held.text or held.tokens:
            yield held
            held = Delta("")
        if isinstance(item, Generation):
            yield item
