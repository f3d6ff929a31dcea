"""One engine replica: serves generations and follows the registry's desired set of adapters.

A replica that starts late or restarts holds everything live before it takes traffic.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ray import serve

from cluster.config import BaseModelRef
from cluster.control.client import AsyncControlClient
from cluster.control.protocol import Proof, ServedAdapter
from cluster.control.swap import check_proofs
from cluster.errors import ArtifactError, SwapError
from cluster.processes import share_interpreter
from cluster.ray_private import log_with_serve, node_address
from cluster.storage import require_stable
from serve_app.config import EngineConfig
from serve_app.engine.in_flight import InFlight
from serve_app.rpc.server import Address, Server
from serve_app.scaling import WORK

logger = logging.getLogger(__name__)


class EngineReplica:
    """The engine deployment's class; made into a deployment by `serve_app.graph`."""

    def __init__(self, model: BaseModelRef, config: EngineConfig) -> None:
        # Here, so that the processes that only build the graph never import vLLM.
        from serve_app.engine.vllm import VLLMEngine

        share_interpreter()
        log_with_serve()
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._engine = VLLMEngine(model, config, self._replica)
        self._in_flight = InFlight(self._engine.complete, self._engine.stream, self._hold_if_wanted)
        self._server = Server(self._replica, self._in_flight.methods)
        self._control = AsyncControlClient()
        self._config = config
        self._changing = asyncio.Lock()
        self._unwanted: set[int] = set()
        self._missed: set[int] = set()
        self._follower: asyncio.Task[None] | None = None

    async def reconfigure(self, _user_config: dict[str, object]) -> None:
        """Serve awaits this before the replica takes traffic: load all that is live."""
        await self._reconcile()
        if self._follower is None:
            self._follower = asyncio.ensure_future(self._follow())

    async def address(self, host: str | None) -> Address:
        """Where gateways call this replica for generations."""
        return await self._server.address(host or node_address())

    async def __del__(self) -> None:
        # Serve awaits this before it stops the replica; requests under way are seen out.
        await self._server.leave()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for this now and then: see `serve_app.scaling`."""
        return {WORK: float(self._in_flight.under_way)}

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Load `adapter` and show that it is what the trainer made."""
        async with self._changing:
            digest = await asyncio.to_thread(require_stable, Path(adapter.path))
            difference = await self._engine.load(adapter)
        return Proof(self._replica, adapter.int_id, digest, len(adapter.golden), difference)

    async def drain(self, int_id: int, timeout_s: float) -> bool:
        """Refuse new requests of a version and wait for those in flight."""
        return await self._engine.residents.drain(int_id, timeout_s)

    async def remove(self, int_id: int) -> bool:
        """Unload a version; whether the engine confirms it."""
        async with self._changing:
            return await self._engine.unload(int_id)

    async def kill(self, name: str) -> int:
        """Refuse an adapter from now on and end its requests; how many there were."""
        return self._engine.residents.kill(name)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._config.reconcile_s)
            try:
                await self._reconcile()
            except Exception:  # the control plane may be restarting; what is loaded serves on
                logger.exception("could not reconcile the adapters; trying again")

    async def _hold_if_wanted(self, adapter: ServedAdapter) -> None:
        """Load what the gateways are sent to and this replica was not there for."""
        if self._engine.residents.holds(adapter.int_id) or adapter.int_id in self._missed:
            return
        # One look for each version: what is not wanted then is gone, and says so by itself.
        self._missed.add(adapter.int_id)
        try:
            await self._load_wanted()
        except Exception:  # as above
            logger.exception("could not reconcile the adapters for %s", adapter.label)
        asyncio.get_running_loop().call_later(1.0, self._missed.discard, adapter.int_id)

    async def _load_wanted(self) -> set[int]:
        """Load what is wanted and not held; the engine ids that are wanted."""
        desired = {adapter.int_id: adapter for adapter in await self._control.desired()}
        for int_id, adapter in desired.items():
            if not self._engine.residents.holds(int_id):
                await self._load_proved(adapter)
        return set(desired)

    async def _load_proved(self, adapter: ServedAdapter) -> None:
        try:
            check_proofs(adapter, [await self.prepare(adapter)])
        except (SwapError, ArtifactError):  # the others are served; this one is tried again
            logger.exception("%s is not served here", adapter.label)
            if self._engine.residents.holds(adapter.int_id):
                await self.remove(adapter.int_id)

    async def _reconcile(self) -> None:
        desired = await self._load_wanted()
        # Twice unwanted and idle: a swap that is removing a version itself is given its time.
        unwanted = self._engine.residents.held.keys() - desired
        for int_id in unwanted & self._unwanted:
            if await self._engine.residents.drain(int_id, 0.0):
                await self.remove(int_id)
        self._unwanted = set(unwanted)

    async def check_health(self) -> None:
        """Serve's health hook."""
        await self._engine.check_health()

    async def close(self) -> None:
        """Stop following and stop the engine."""
        if self._follower is not None:
            self._follower.cancel()
        await self._engine.close()
