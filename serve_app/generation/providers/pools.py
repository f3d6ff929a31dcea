"""Several pools of engines as one provider: dedicated engines first, then the one with adapters."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from serve_app.generation.providers.base import OnItem, ignore
from serve_app.generation.providers.vllm_replicas import VLLMReplicas
from serve_app.protocol import (
    AdapterGone,
    AdapterKilled,
    Delta,
    EngineFailed,
    Generation,
    GenerationRequest,
)

#: It may be live again and only the others know, or the replica broke: they are asked.
_NOT_HERE = (AdapterGone, AdapterKilled, EngineFailed)


class Pools:
    """A provider over an engine with adapters, and engines that serve one target each.

    `dedicated` is by target id. Where one of those cannot answer, the engine with adapters does: it
    knows what is live.
    """

    def __init__(self, main: VLLMReplicas, dedicated: Mapping[str, VLLMReplicas]) -> None:
        self._main, self._dedicated = main, dedicated

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.generation.providers.base.Provider.complete`."""
        pool = self._of(request)
        if pool is not None:
            try:
                return await pool.complete(request)
            except _NOT_HERE:
                pass
        return await self._main.complete(request)

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        """See `serve_app.generation.providers.base.Provider.stream`."""
        pool, begun = self._of(request), False
        if pool is not None:
            try:
                async with aclosing(pool.stream(request, on_item)) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except _NOT_HERE:
                if begun:
                    raise
        async with aclosing(self._main.stream(request, on_item)) as items:
            async for item in items:
                yield item

    def _of(self, request: GenerationRequest) -> VLLMReplicas | None:
        found = self._dedicated.get(request.target.id)
        return found if found is not None and found.reachable else None
