"""The engine seen from the gateway: the engine protocol over calls to its replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cluster.control.protocol import ServedAdapter
from serve_app.engine.in_flight import Answer
from serve_app.engine.placement import Placement, Share
from serve_app.protocol import (
    Arrived,
    Delta,
    EngineFailed,
    EngineFault,
    Generation,
    GenerationRequest,
    unheard,
)
from serve_app.rpc.client import CallFailed, ReplicaLost
from serve_app.rpc.pool import Among, Pool


class RemoteEngine:
    """Implements `serve_app.protocol.Engines`. A caller that leaves stops its request there."""

    def __init__(self, replicas: Pool, share: Share) -> None:
        """`share` is an adapter's share of the load: see `serve_app.engine.placement`."""
        self._replicas = replicas
        self._placement = Placement(share)

    @property
    def reachable(self) -> bool:
        """Whether a replica can be called now."""
        return self._replicas.reachable

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.protocol.Engines.complete`."""
        try:
            answer: Answer = await self._replicas.call(
                "complete", request, among=self._among(request.adapter)
            )
        except (ReplicaLost, CallFailed) as error:
            raise EngineFailed("the engine's replica gave no answer") from error
        if isinstance(answer, EngineFault):
            raise answer.raised()
        self._held(request.adapter, answer)
        return answer

    async def stream(
        self, request: GenerationRequest, arrived: Arrived = unheard
    ) -> AsyncGenerator[Delta | Generation, None]:
        """See `serve_app.protocol.Engines.stream`."""

        def came(item: Delta | Answer) -> None:
            if not isinstance(item, EngineFault):
                arrived(item)

        among = self._among(request.adapter)
        async with aclosing(
            self._replicas.stream("stream", request, among=among, arrived=came)
        ) as items:
            try:
                async for item in items:
                    if isinstance(item, EngineFault):
                        raise item.raised()
                    if isinstance(item, Generation):
                        self._held(request.adapter, item)
                    yield item
            except (ReplicaLost, CallFailed) as error:
                raise EngineFailed("the engine's replica gave no answer") from error

    def _among(self, adapter: ServedAdapter | None) -> Among | None:
        if adapter is None:
            return None
        return lambda usable: self._placement.of(adapter, usable)

    def _held(self, adapter: ServedAdapter | None, answer: Generation) -> None:
        if adapter is not None:
            self._placement.answered(answer.replica, adapter)
