"""The provider over our own vLLM replicas: which replica is asked, and the next where it lacks the
adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cluster.records.adapter import ServedAdapter
from serve_app.engine.in_flight import Answer
from serve_app.generation.providers.base import OnItem, ignore
from serve_app.generation.providers.placement import Placement, Share
from serve_app.protocol import (
    Delta,
    EngineFailed,
    EngineFault,
    Generation,
    GenerationRequest,
)
from serve_app.rpc.client import CallFailed, Connection, ReplicaLost
from serve_app.rpc.pool import Among, Pool

#: Replicas that one request is sent to at most, where none of them holds its adapter.
_ASKED = 4


class VLLMReplicas:
    """A provider. A caller that leaves stops its request on the replica."""

    def __init__(self, replicas: Pool, share: Share) -> None:
        """`share` is an adapter's share of the load: see `placement`."""
        self._replicas = replicas
        self._placement = Placement(share)

    @property
    def reachable(self) -> bool:
        """Whether a replica can be called now."""
        return self._replicas.reachable

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.generation.providers.base.Provider.complete`."""
        selector = _ReplicaSelector(self._placement, request.adapter)
        while True:
            try:
                answer: Answer = await self._replicas.call(
                    "complete", request, among=selector.among
                )
            except (ReplicaLost, CallFailed) as error:
                raise EngineFailed("the engine's replica gave no answer") from error
            if isinstance(answer, EngineFault):
                if selector.try_another(answer):
                    continue
                raise answer.raised()
            selector.answered(answer)
            return answer

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        """See `serve_app.generation.providers.base.Provider.stream`."""

        def note(item: Delta | Answer) -> None:
            if not isinstance(item, EngineFault):
                on_item(item)

        selector = _ReplicaSelector(self._placement, request.adapter)
        while True:
            elsewhere = False
            async with aclosing(
                self._replicas.stream("stream", request, among=selector.among, on_item=note)
            ) as items:
                try:
                    async for item in items:
                        if isinstance(item, EngineFault):
                            # Before the first token: nothing has been shown.
                            if elsewhere := selector.try_another(item):
                                break
                            raise item.raised()
                        if isinstance(item, Generation):
                            selector.answered(item)
                        yield item
                except (ReplicaLost, CallFailed) as error:
                    raise EngineFailed("the engine's replica gave no answer") from error
            if not elsewhere:
                return


class _ReplicaSelector:
    """Selects replicas for one request until one holds its adapter."""

    def __init__(self, placement: Placement, adapter: ServedAdapter | None) -> None:
        self._placement, self._adapter = placement, adapter
        self._missed: set[str] = set()
        self._others = 0

    @property
    def among(self) -> Among | None:
        """Filters the replicas that may be asked; None lets any be, where there is no adapter."""
        return None if self._adapter is None else self._of

    def _of(self, usable: list[Connection]) -> list[Connection]:
        assert self._adapter is not None
        self._others = sum(one.address.replica not in self._missed for one in usable) - 1
        return self._placement.of(self._adapter, usable)

    def answered(self, answer: Generation) -> None:
        """A replica has answered."""
        if self._adapter is not None:
            self._placement.answered(answer.replica, self._adapter)

    def try_another(self, fault: EngineFault) -> bool:
        """Whether to ask another replica, this one lacking the adapter; each is asked once."""
        if self._adapter is None or not fault.gone or fault.replica in self._missed:
            return False
        self._missed.add(fault.replica)
        self._placement.missed(fault.replica, self._adapter)
        return self._others > 0 and len(self._missed) < _ASKED
