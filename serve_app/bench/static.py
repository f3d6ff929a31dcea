"""A static engine: answers at once with a fixed text. For benchmarks of everything around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from cluster.config import BaseModelRef
from cluster.control.protocol import Proof, ServedAdapter
from cluster.processes import share_interpreter
from serve_app.config import EngineConfig
from serve_app.engine.in_flight import Answer, InFlight
from serve_app.engine.outbox import Parcel
from serve_app.protocol import Delta, Generation, GenerationRequest
from serve_app.scaling import WORK

ANSWER = "This is the fixed answer of a static engine, sixteen tokens or so of plain text."
TOKENS = 16


class StaticEngineReplica:
    """Stands where `serve_app.engine.replica.EngineReplica` stands, and generates nothing."""

    def __init__(self, model: BaseModelRef, config: EngineConfig) -> None:
        share_interpreter()
        self._model = model.path.rstrip("/").rpartition("/")[2]
        self._in_flight = InFlight(self.complete, self._words)

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Nothing is ever loaded."""

    async def complete(self, request: GenerationRequest) -> Generation:
        """The fixed answer."""
        return Generation(
            ANSWER, self._model, 12, TOKENS, "stop", -0.01, -0.05, None, 0.0, "static"
        )

    async def stream(self, request: GenerationRequest, caller: str) -> AsyncIterator[Parcel]:
        """The fixed answer, word by word."""
        async for parcel in self._in_flight.stream(request, caller):
            yield parcel

    async def _words(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        for word in ANSWER.split(" "):
            yield Delta(word + " ")
        yield await self.complete(request)

    async def complete_many(
        self, requests: Sequence[GenerationRequest]
    ) -> AsyncIterator[list[tuple[int, Answer]]]:
        """As the real replica."""
        async for answers in self._in_flight.many(requests):
            yield answers

    async def abort(self, request_id: str) -> None:
        """As the real replica."""
        self._in_flight.abort(request_id)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """As the real replica."""
        return {WORK: float(self._in_flight.under_way)}

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Refused: a static engine cannot prove an adapter."""
        raise NotImplementedError(f"a static engine holds no adapter such as {adapter.label}")
