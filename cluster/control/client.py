"""Typed clients of the control plane actor: blocking for jobs, awaitable for deployments."""

from __future__ import annotations

from typing import Any

import ray

from cluster.control.protocol import (
    ACTOR_NAME,
    NAMESPACE,
    KillReport,
    RoutingTable,
    ServedAdapter,
    SwapReport,
)
from cluster.dataset import DatasetManifest
from cluster.registry.bases import BaseModelInfo
from cluster.registry.keys import IssuedKey, KeyRecord, KeyRequest
from cluster.registry.labels import GivenLabel, LabelTask
from cluster.registry.usage import PriceBook, TokenUse
from cluster.registry.versions import AdapterRecord
from cluster.rollout.gate import GateConfig, Verdict
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.state import Report, Rollout
from cluster.types import AdapterVersion, Principal

_TIMEOUT_S = 120.0


def _actor() -> Any:
    return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)


class ControlClient:
    """Blocking calls, for jobs and operator commands. Errors arrive as the actor raised them.

    What is changed is recorded as done by `name`.
    """

    def __init__(self, name: str = "operator") -> None:
        self._name = name
        self._actor = _actor()

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            # Ray wraps what the actor raised; callers handle our own error types.
            raise (error.cause if isinstance(error.cause, Exception) else error) from error

    def issue_key(self, request: KeyRequest) -> IssuedKey:
        """Create an API key."""
        result: IssuedKey = self._get(self._actor.issue_key.remote(request, self._name))
        return result

    def revoke_key(self, key_id: str) -> None:
        """End a key."""
        self._get(self._actor.revoke_key.remote(key_id, self._name))

    def keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """What may be known of every key, or of a tenant's."""
        result: list[KeyRecord] = self._get(self._actor.listed_keys.remote(tenant))
        return result

    def suspend_tenant(self, tenant: str, *, suspended: bool = True) -> None:
        """Let none of a tenant's keys through, or let them through again."""
        self._get(self._actor.suspend_tenant.remote(tenant, suspended, self._name))

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest changes, newest first."""
        result: list[dict[str, Any]] = self._get(self._actor.newest_events.remote(limit))
        return result

    def serve_base(self, info: BaseModelInfo) -> list[str]:
        """Make `info` the base model that serves; labels of the versions to be fitted again."""
        result: list[str] = self._get(self._actor.serve_base.remote(info, self._name))
        return result

    def table(self) -> RoutingTable:
        """The present routing table."""
        result: RoutingTable = self._get(self._actor.table.remote())
        return result

    def next_version(self, name: str) -> int:
        """The number the next version of `name` gets."""
        return int(self._get(self._actor.next_version.remote(name)))

    def register_candidate(self, path: str, owner: str) -> AdapterVersion:
        """Register a published adapter directory as a candidate of tenant `owner`'s."""
        registered = self._actor.register_candidate.remote(path, owner, self._name)
        result: AdapterVersion = self._get(registered)
        return result

    def grant(self, adapter: str, tenant: str, *, granted: bool = True) -> None:
        """Let `tenant` reach `adapter`, or no longer; `*` is every tenant."""
        self._get(self._actor.grant.remote(adapter, tenant, granted, self._name))

    def gate(self, version: AdapterVersion, config: GateConfig) -> Verdict:
        """Judge a candidate."""
        result: Verdict = self._get(self._actor.gate.remote(version, config, self._name))
        return result

    def promote(self, version: AdapterVersion) -> SwapReport:
        """Swap a passed version in."""
        result: SwapReport = self._get(self._actor.promote.remote(version, self._name))
        return result

    def start_rollout(self, version: AdapterVersion, plan: RolloutPlan) -> Rollout:
        """Bring a passed version to the users step by step."""
        result: Rollout = self._get(self._actor.start_rollout.remote(version, plan, self._name))
        return result

    def end_rollout(self, adapter: str, reason: str) -> None:
        """Take the adapter's candidate back."""
        self._get(self._actor.end_rollout.remote(adapter, reason, self._name))

    def rollouts(self, limit: int = 20) -> list[Rollout]:
        """The newest rollouts, newest first."""
        result: list[Rollout] = self._get(self._actor.rollouts.remote(limit))
        return result

    def kill(self, adapter: str, reason: str) -> KillReport:
        """Switch an adapter off everywhere."""
        result: KillReport = self._get(self._actor.kill.remote(adapter, reason, self._name))
        return result

    def revive(self, adapter: str) -> SwapReport | None:
        """Let a killed adapter serve again; None where no version of it was live."""
        result: SwapReport | None = self._get(self._actor.revive.remote(adapter, self._name))
        return result

    def adapter_versions(self) -> list[AdapterRecord]:
        """Every registered version."""
        result: list[AdapterRecord] = self._get(self._actor.adapter_versions.remote())
        return result

    def bill(self, tenant: str, start: float, end: float, prices: PriceBook) -> dict[str, Any]:
        """What a tenant used and what it costs."""
        asked = self._actor.bill.remote(tenant, start, end, prices)
        result: dict[str, Any] = self._get(asked)
        return result

    def settle(self) -> int:
        """Enter what the audit log has and the meter does not."""
        return int(self._get(self._actor.settle.remote()))

    def card(self, version: AdapterVersion) -> str:
        """The model card of a version, as Markdown."""
        return str(self._get(self._actor.card.remote(version)))

    def register_dataset(self, path: str) -> DatasetManifest:
        """Register a published dataset version."""
        result: DatasetManifest = self._get(self._actor.register_dataset.remote(path))
        return result

    def datasets(self) -> list[DatasetManifest]:
        """Every dataset version."""
        result: list[DatasetManifest] = self._get(self._actor.datasets.remote())
        return result

    def labelled(self, tenant: str, adapter: str) -> list[dict[str, Any]]:
        """The labels a tenant gave for one adapter."""
        result: list[dict[str, Any]] = self._get(self._actor.labelled.remote(tenant, adapter))
        return result

    def label_counts(self, tenant: str) -> dict[str, int]:
        """The state of the label queue."""
        result: dict[str, int] = self._get(self._actor.label_counts.remote(tenant))
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

    async def report(self, reports: list[Report]) -> None:
        """Tell what a gateway saw of the rollouts under way."""
        await self._actor.report.remote(reports)

    async def tell_use(self, uses: list[TokenUse]) -> int:
        """Tell the meter what was used."""
        return int(await self._actor.tell_use.remote(uses))

    async def enqueue_labels(self, tasks: list[LabelTask]) -> int:
        """Put traces before the experts."""
        return int(await self._actor.enqueue_labels.remote(tasks))

    async def claim_labels(self, tenant: str, annotator: str, limit: int) -> list[LabelTask]:
        """Lease tasks to an annotator."""
        claimed = self._actor.claim_labels.remote(tenant, annotator, limit)
        result: list[LabelTask] = await claimed
        return result

    async def submit_labels(self, tenant: str, given: list[GivenLabel]) -> int:
        """Store experts' labels."""
        return int(await self._actor.submit_labels.remote(tenant, given))

    async def label_counts(self, tenant: str) -> dict[str, int]:
        """The state of the label queue."""
        result: dict[str, int] = await self._actor.label_counts.remote(tenant)
        return result
