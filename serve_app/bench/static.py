"""A static engine: answers at once with a fixed text. For benchmarks of everything around it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cluster.config import BaseModelRef
from cluster.control.protocol import Proof, ServedAdapter
from serve_app.config import EngineConfig
from serve_app.protocol import Delta, Generation, GenerationRequest

ANSWER = "This is the fixed answer of a static engine, sixteen tokens or so of plain text."
TOKENS = 16


class StaticEngineReplica:
    """Stands where `serve_app.engine.replica.EngineReplica` stands, and generates nothing."""

    def __init__(self, model: BaseModelRef, config: EngineConfig) -> None:
        self._model = model.path.rstrip("/").rpartition("/")[2]

    async def reconfigure(self, user_config: dict[str, object]) -> None:
        """Nothing is ever loaded."""

    async def complete(self, request: GenerationRequest) -> Generation:
        """The fixed answer."""
        return Generation(
            ANSWER, self._model, 12, TOKENS, "stop", -0.01, -0.05, None, 0.0, "static"
        )

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        """The fixed answer, word by word."""
        for word in ANSWER.split(" "):
            yield Delta(word + " ")
        yield await self.complete(request)

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Refused: a static engine cannot prove an adapter."""
        raise NotImplementedError(f"a static engine holds no adapter such as {adapter.label}")
