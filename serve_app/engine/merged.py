"""A replica without adapters: the one version that is merged into its model, or the base alone.

A merged model is verified by its version's golden prompts before it takes traffic, like an adapter.
"""

from __future__ import annotations

import logging

from cluster.control.protocol import Proof
from cluster.control.swap import check_proofs
from cluster.errors import SwapError
from cluster.records.adapter import ServedAdapter
from serve_app.engine.loader import AdapterEngine, DesiredAdapters

logger = logging.getLogger(__name__)


class MergedModel:
    """What a plain replica holds, in the place of a `Loader`. `version` None is the base model."""

    def __init__(
        self, engine: AdapterEngine, serving: DesiredAdapters, replica: str, version: str | None
    ) -> None:
        self._engine, self._serving, self._replica = engine, serving, replica
        self._version = version

    async def reconcile(self) -> None:
        """Serve the version while it is wanted; proved anew whenever it becomes so.

        Raises:
            SwapError: the model is not what the version's trainer made.
        """
        if self._version is None:
            return
        desired = await self._serving.desired()
        wanted = next((one for one in desired if one.label == self._version), None)
        residents = self._engine.residents
        held = next(iter(residents.held.values()), None)
        if wanted is None and held is not None:
            if await residents.drain(held.int_id, 0.0):
                residents.discard(held.int_id)
        elif wanted is not None and (held is None or residents.refuses(wanted.int_id)):
            kills = residents.kills(wanted.name)
            wanted = await self._serving.desired_version(wanted.int_id)
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
