"""A static engine: answers at once with a fixed text. For benchmarks of everything around it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ray import serve

from cluster.config import BaseModelRef
from cluster.control.protocol import Proof
from cluster.processes import share_interpreter
from cluster.ray_private import node_address, stay_on_loopback
from cluster.records.adapter import ServedAdapter
from serve_app.bench.fixed import ANSWER, TOKENS
from serve_app.config import EngineConfig
from serve_app.engine.in_flight import InFlight
from serve_app.pipeline.scaling import WORK
from serve_app.protocol import Delta, Generation, GenerationRequest
from serve_app.rpc.server import Address, Server


class StaticEngineReplica:
    """Stands where `serve_app.engine.replica.EngineReplica` stands, and generates nothing."""

    def __init__(self, model: BaseModelRef, config: EngineConfig) -> None:
        share_interpreter()
        stay_on_loopback()
        self._model = model.path.rstrip("/").rpartition("/")[2]
        self._in_flight = InFlight(self.complete, self._words)
        replica = serve.get_replica_context().replica_id.unique_id
        self._server = Server(replica, self._in_flight.methods)

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Nothing is ever loaded."""

    async def complete(self, request: GenerationRequest) -> Generation:
        """The fixed answer."""
        return Generation(
            ANSWER, self._model, 12, TOKENS, "stop", -0.01, -0.05, None, 0.0, "static"
        )

    async def _words(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        for word in ANSWER.split(" "):
            yield Delta(word + " ")
        yield await self.complete(request)

    async def address(self, host: str | None) -> Address:
        """As the real replica."""
        return await self._server.address(host or node_address())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """As the real replica."""
        return {WORK: float(self._in_flight.under_way)}

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Refused: a static engine cannot prove an adapter."""
        raise NotImplementedError(f"a static engine holds no adapter such as {adapter.label}")
