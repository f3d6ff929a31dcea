"""One engine replica: serves generations and follows the registry's desired set of adapters.

A replica that starts late or restarts holds everything live before it takes traffic.
"""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from cluster.config import BaseModelRef
from cluster.control.client import ControlClient
from cluster.control.protocol import Proof
from cluster.processes import share_interpreter
from cluster.ray_private import log_with_serve, node_address, stay_on_loopback
from cluster.records.adapter import ServedAdapter
from serve_app.config import EngineConfig
from serve_app.engine.in_flight import InFlight
from serve_app.engine.loader import Loader
from serve_app.engine.merged import MergedModel
from serve_app.pipeline.scaling import WORK
from serve_app.rpc.server import Address, Server

logger = logging.getLogger(__name__)


class EngineReplica:
    """The engine deployment's class; made into a deployment by `serve_app.graph`."""

    def __init__(
        self, model: BaseModelRef, config: EngineConfig, version: str | None = None
    ) -> None:
        """`version` is the one that `model` is, where an engine without adapters serves it."""
        # Here, so that the processes that only build the graph never import vLLM.
        from serve_app.engine.vllm import VLLMEngine

        share_interpreter()
        log_with_serve()
        stay_on_loopback()
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._engine = VLLMEngine(model, config, self._replica)
        serving = ControlClient().serving
        self._loader: Loader | MergedModel
        if config.loras:
            self._loader = Loader(
                self._engine,
                serving,
                self._replica,
                capacity=config.max_cpu_loras,
                eager=config.eager_loras,
            )
        else:
            self._loader = MergedModel(self._engine, serving, self._replica, version)
        self._in_flight = InFlight(
            self._engine.complete, self._engine.stream, self._loader.hold, self._replica
        )
        self._server = Server(self._replica, {**self._in_flight.methods, "hold": self._hold})
        self._config = config
        self._follower: asyncio.Task[None] | None = None

    async def reconfigure(self, _user_config: dict[str, object]) -> None:
        """Serve awaits this before the replica takes traffic: load all that is live."""
        await self._loader.reconcile()
        if self._follower is None:
            self._follower = asyncio.ensure_future(self._follow())

    async def address(self, host: str | None) -> Address:
        """Where gateways call this replica for generations."""
        return await self._server.address(host or node_address())

    async def __del__(self) -> None:
        # Serve awaits this before it stops the replica, also one that never started; requests under
        # way are seen out.
        if hasattr(self, "_server"):
            await self._server.leave()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for this now and then: see `serve_app.pipeline.scaling`."""
        return {WORK: float(self._in_flight.under_way)}

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Load `adapter` and show that it is what the trainer made."""
        return await self._loader.prepare(adapter)

    async def _hold(self, adapter: ServedAdapter) -> bool:
        """A gateway means to send requests of `adapter` here: whether it may."""
        await self._loader.hold(adapter)
        return self._engine.residents.holds(adapter.int_id)

    async def retire(self, int_id: int, timeout_s: float) -> bool:
        """See a version off and unload it; whether the engine confirms it."""
        return await self._loader.retire(int_id, timeout_s)

    async def remove(self, int_id: int) -> bool:
        """Unload a version; whether the engine confirms it."""
        return await self._loader.remove(int_id)

    async def kill(self, name: str) -> int:
        """Refuse an adapter from now on and end its requests; how many there were."""
        return self._engine.residents.kill(name)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._config.reconcile_s)
            try:
                await self._loader.reconcile()
            except Exception:  # the control plane may be restarting; what is loaded serves on
                logger.exception("could not reconcile the adapters; trying again")

    async def check_health(self) -> None:
        """Serve's health hook."""
        await self._engine.check_health()

    async def close(self) -> None:
        """Stop following and stop the engine."""
        if self._follower is not None:
            self._follower.cancel()
        await self._engine.close()
