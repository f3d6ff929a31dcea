"""Engines without adapters: the one version that each serves, and which requests go to them.

A merged model is proved by its version's golden prompts before it takes traffic, like an adapter.
Where a plain engine cannot answer, the engine with adapters does: it knows what is live.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cluster.control.protocol import Proof, ServedAdapter
from cluster.control.swap import check_proofs
from cluster.errors import SwapError
from serve_app.engine.loader import AdapterEngine, Wishes
from serve_app.engine.remote import RemoteEngine
from serve_app.protocol import (
    AdapterGone,
    AdapterKilled,
    Arrived,
    Delta,
    EngineFailed,
    Generation,
    GenerationRequest,
    unheard,
)

logger = logging.getLogger(__name__)

#: It may be live again and only the others know, or the replica broke: they are asked.
_NOT_HERE = (AdapterGone, AdapterKilled, EngineFailed)


class Merged:
    """What a plain replica holds, in the place of a `Loader`. `version` None is the base model."""

    def __init__(
        self, engine: AdapterEngine, control: Wishes, replica: str, version: str | None
    ) -> None:
        self._engine, self._control, self._replica = engine, control, replica
        self._version = version

    async def reconcile(self) -> None:
        """Serve the version while it is wanted; proved anew whenever it becomes so.

        Raises:
            SwapError: the model is not what the version's trainer made.
        """
        if self._version is None:
            return
        desired = await self._control.desired()
        wanted = next((one for one in desired if one.label == self._version), None)
        residents = self._engine.residents
        held = next(iter(residents.held.values()), None)
        if wanted is None and held is not None:
            if await residents.drain(held.int_id, 0.0):
                residents.discard(held.int_id)
        elif wanted is not None and (held is None or residents.refuses(wanted.int_id)):
            kills = residents.kills(wanted.name)
            wanted = await self._control.wanted(wanted.int_id)
            if wanted is None:
                return
            difference = await self._engine.load(wanted, probe=True)
            try:
                check_proofs(wanted, [self._proof(wanted, difference)])
                if residents.kills(wanted.name) != kills:
                    raise SwapError(f"{wanted.label} was switched off while it was proved")
            except SwapError:
                residents.kill(wanted.name)
                raise

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Nothing is swapped here."""
        raise SwapError(f"{adapter.label} cannot be loaded into an engine without adapters")

    async def retire(self, _int_id: int, _timeout_s: float) -> bool:
        """As `remove`."""
        return True

    async def remove(self, _int_id: int) -> bool:
        """Nothing is removed by a swap; `reconcile` sees to it."""
        return True

    async def hold(self, _adapter: ServedAdapter) -> None:
        """Nothing is loaded on request."""

    def _proof(self, wanted: ServedAdapter, difference: float) -> Proof:
        # The merged files are not the adapter's: its probes alone show what they are.
        return Proof(self._replica, wanted.int_id, wanted.digest, difference)


class Pools:
    """Implements `serve_app.protocol.Engines` over an engine with adapters and plain ones.

    `plain` is by the label of the version, None for the base model alone.
    """

    def __init__(self, main: RemoteEngine, plain: Mapping[str | None, RemoteEngine]) -> None:
        self._main, self._plain = main, plain

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.protocol.Engines.complete`."""
        plain = self._of(request)
        if plain is not None:
            try:
                return await plain.complete(request)
            except _NOT_HERE:
                pass
        return await self._main.complete(request)

    async def stream(
        self, request: GenerationRequest, arrived: Arrived = unheard
    ) -> AsyncGenerator[Delta | Generation, None]:
        """See `serve_app.protocol.Engines.stream`."""
        plain, begun = self._of(request), False
        if plain is not None:
            try:
                async with aclosing(plain.stream(request, arrived)) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except _NOT_HERE:
                if begun:
                    raise
        async with aclosing(self._main.stream(request, arrived)) as items:
            async for item in items:
                yield item

    def _of(self, request: GenerationRequest) -> RemoteEngine | None:
        label = request.adapter.label if request.adapter is not None else None
        found = self._plain.get(label)
        return found if found is not None and found.reachable else None
