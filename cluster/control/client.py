"""Typed clients of the control plane actor: blocking for jobs, awaitable for deployments."""

from __future__ import annotations

from typing import Any

import ray

from cluster.control.protocol import ACTOR_NAME, NAMESPACE, RoutingTable, ServedAdapter, SwapReport
from cluster.dataset import DatasetManifest
from cluster.registry.labels import GivenLabel, LabelTask
from cluster.registry.versions import AdapterRecord
from cluster.rollout.gate import GateConfig, Verdict
from cluster.types import AdapterVersion, Principal, Role

_TIMEOUT_S = 120.0


def _actor() -> Any:
    return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)


class ControlClient:
    """Blocking calls, for jobs and operator commands. Errors arrive as the actor raised them."""

    def __init__(self) -> None:
        self._actor = _actor()

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            # Ray wraps what the actor raised; callers handle our own error types.
            raise (error.cause if isinstance(error.cause, Exception) else error) from error

    def issue_key(self, tenant: str, roles: list[Role], attributes: dict[str, str]) -> str:
        """Create an API key and return its secret."""
        return str(self._get(self._actor.issue_key.remote(tenant, roles, attributes)))

    def table(self) -> RoutingTable:
        """The present routing table."""
        result: RoutingTable = self._get(self._actor.table.remote())
        return result

    def next_version(self, name: str) -> int:
        """The number the next version of `name` gets."""
        return int(self._get(self._actor.next_version.remote(name)))

    def register_candidate(self, path: str) -> AdapterVersion:
        """Register a published adapter directory."""
        result: AdapterVersion = self._get(self._actor.register_candidate.remote(path))
        return result

    def gate(self, version: AdapterVersion, config: GateConfig) -> Verdict:
        """Judge a candidate."""
        result: Verdict = self._get(self._actor.gate.remote(version, config))
        return result

    def promote(self, version: AdapterVersion) -> SwapReport:
        """Swap a passed version in."""
        result: SwapReport = self._get(self._actor.promote.remote(version))
        return result

    def adapter_versions(self) -> list[AdapterRecord]:
        """Every registered version."""
        result: list[AdapterRecord] = self._get(self._actor.adapter_versions.remote())
        return result

    def register_dataset(self, path: str) -> DatasetManifest:
        """Register a published dataset version."""
        result: DatasetManifest = self._get(self._actor.register_dataset.remote(path))
        return result

    def datasets(self) -> list[DatasetManifest]:
        """Every dataset version."""
        result: list[DatasetManifest] = self._get(self._actor.datasets.remote())
        return result

    def labelled(self, adapter: str) -> list[dict[str, Any]]:
        """The labels given for one adapter."""
        result: list[dict[str, Any]] = self._get(self._actor.labelled.remote(adapter))
        return result

    def label_counts(self) -> dict[str, int]:
        """The state of the label queue."""
        result: dict[str, int] = self._get(self._actor.label_counts.remote())
        return result


class AsyncControlClient:
    """Awaitable calls, for Serve deployments."""

    def __init__(self) -> None:
        self._actor = _actor()

    async def resolve_key(self, digest: str) -> Principal | None:
        """The principal behind a key's digest."""
        result: Principal | None = await self._actor.resolve_key.remote(digest)
        return result

    async def table(self) -> RoutingTable:
        """The present routing table."""
        result: RoutingTable = await self._actor.table.remote()
        return result

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        """The table once it is newer than `generation`."""
        result: RoutingTable = await self._actor.watch.remote(generation, timeout_s)
        return result

    async def desired(self) -> list[ServedAdapter]:
        """What an engine replica must hold."""
        result: list[ServedAdapter] = await self._actor.desired.remote()
        return result

    async def enqueue_labels(self, tasks: list[LabelTask]) -> int:
        """Put traces before the experts."""
        return int(await self._actor.enqueue_labels.remote(tasks))

    async def claim_labels(self, annotator: str, limit: int) -> list[LabelTask]:
        """Lease tasks to an annotator."""
        result: list[LabelTask] = await self._actor.claim_labels.remote(annotator, limit)
        return result

    async def submit_labels(self, given: list[GivenLabel]) -> int:
        """Store experts' labels."""
        return int(await self._actor.submit_labels.remote(given))

    async def label_counts(self) -> dict[str, int]:
        """The state of the label queue."""
        result: dict[str, int] = await self._actor.label_counts.remote()
        return result
