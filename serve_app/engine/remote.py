"""The engine seen from the gateway: the engine protocol over calls to its replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from serve_app.engine.in_flight import Answer
from serve_app.protocol import Delta, EngineFailed, EngineFault, Generation, GenerationRequest
from serve_app.rpc.client import CallFailed, ReplicaLost
from serve_app.rpc.pool import Pool


class RemoteEngine:
    """Implements `serve_app.protocol.Engine`. A caller that leaves stops its request there."""

    def __init__(self, replicas: Pool) -> None:
        self._replicas = replicas

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.protocol.Engine.complete`."""
        try:
            answer: Answer = await self._replicas.call("complete", request)
        except (ReplicaLost, CallFailed) as error:
            raise EngineFailed("the engine's replica gave no answer") from error
        if isinstance(answer, EngineFault):
            raise answer.raised()
        return answer

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta | Generation, None]:
        """See `serve_app.protocol.Engine.stream`."""
        async with aclosing(self._replicas.stream("stream", request)) as items:
            try:
                async for item in items:
                    if isinstance(item, EngineFault):
                        raise item.raised()
                    yield item
            except (ReplicaLost, CallFailed) as error:
                raise EngineFailed("the engine's replica gave no answer") from error
