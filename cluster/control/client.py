"""Typed clients of the control plane actor: blocking for jobs, awaitable for deployments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from cluster.audit import Head
from cluster.budget.exchange import Reservation, Settlement
from cluster.budget.ledger import Refusal, Room
from cluster.budget.limits import Limits
from cluster.budget.prices import PriceBook
from cluster.control.protocol import (
    ACTOR_NAME,
    NAMESPACE,
    KillReport,
    RoutingTable,
    ServedAdapter,
    SwapReport,
)
from cluster.dataset import DatasetManifest
from cluster.errors import AwayError
from cluster.registry.bases import BaseModelInfo
from cluster.registry.keys import IssuedKey, KeyChange, KeyRecord, KeyRequest
from cluster.registry.labels import GivenLabel, LabelTask
from cluster.registry.usage import TokenUse
from cluster.registry.versions import AdapterRecord
from cluster.rollout.evidence import Arm
from cluster.rollout.gate import GateConfig, Verdict
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.state import Report, Rollout
from cluster.types import AdapterVersion, Principal

_TIMEOUT_S = 120.0
#: Of what waits for a swap under way, which may take as long as its last request does.
_AFTER_A_SWAP_S = 300.0


_AWAY = "the control plane does not answer now: try again in a moment"


def _actor() -> Any:
    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError as error:  # Ray knows none by that name
        raise AwayError(_AWAY) from error


class ControlClient:
    """Blocking calls, for jobs and operator commands. Errors arrive as the actor raised them.

    What is changed is recorded as done by `name`.
    """

    def __init__(self, name: str = "operator") -> None:
        self._name = name
        self._actor = _actor()

    def _get(self, reference: Any, timeout_s: float = _TIMEOUT_S) -> Any:
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            # Ray wraps what the actor raised; callers handle our own error types.
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise AwayError(f"the control plane has not answered for {timeout_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise AwayError(_AWAY) from error

    def issue_key(self, request: KeyRequest) -> IssuedKey:
        """Create an API key."""
        result: IssuedKey = self._get(self._actor.issue_key.remote(request, self._name, True))
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

    def writers(self) -> tuple[dict[str, Head], dict[str, Head]]:
        """How far each writer of the audit log has come: of requests, and of changes."""
        result: tuple[dict[str, Head], dict[str, Head]] = self._get(self._actor.writers.remote())
        return result

    def serve_base(self, info: BaseModelInfo) -> list[str]:
        """Make `info` the base model that serves; labels of the versions to be fitted again."""
        asked = self._actor.serve_base.remote(info, self._name)
        result: list[str] = self._get(asked, _AFTER_A_SWAP_S)
        return result

    def base_model(self, digest: str | None = None) -> BaseModelInfo:
        """The base model with `digest`; without, the one that serves."""
        result: BaseModelInfo = self._get(self._actor.base_model.remote(digest))
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

    def owner(self, adapter: str) -> str | None:
        """The tenant an adapter belongs to, or None where there is no such adapter."""
        result: str | None = self._get(self._actor.owner.remote(adapter))
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

    def appeal(self, version: AdapterVersion, reason: str) -> None:
        """Let a version that a rollout refused be tried again."""
        self._get(self._actor.appeal.remote(version, reason, self._name))

    def start_rollout(self, version: AdapterVersion, plan: RolloutPlan) -> Rollout:
        """Bring a passed version to the users step by step."""
        result: Rollout = self._get(self._actor.start_rollout.remote(version, plan, self._name))
        return result

    def end_rollout(self, adapter: str, reason: str) -> None:
        """Take the adapter's candidate back."""
        self._get(self._actor.end_rollout.remote(adapter, reason, self._name))

    def promote_rollout(self, adapter: str) -> None:
        """Promote the candidate of a rollout that waits for a person."""
        self._get(self._actor.promote_rollout.remote(adapter, self._name))

    def rollouts(self, limit: int = 20) -> list[Rollout]:
        """The newest rollouts, newest first."""
        result: list[Rollout] = self._get(self._actor.rollouts.remote(limit))
        return result

    def kill(self, adapter: str, reason: str) -> KillReport:
        """Switch an adapter off everywhere."""
        result: KillReport = self._get(self._actor.kill.remote(adapter, reason, self._name))
        return result

    def revive(self, adapter: str, version: AdapterVersion | None = None) -> SwapReport | None:
        """Let a killed adapter serve again, with another version where one is named; None where
        none was live."""
        asked = self._actor.revive.remote(adapter, self._name, version)
        result: SwapReport | None = self._get(asked)
        return result

    def adapter_version(self, version: AdapterVersion) -> AdapterRecord:
        """One registered version."""
        result: AdapterRecord = self._get(self._actor.adapter_version.remote(version))
        return result

    def live_version(self, adapter: str) -> AdapterRecord | None:
        """The version of `adapter` that is live, or would be were it not switched off."""
        result: AdapterRecord | None = self._get(self._actor.live_version.remote(adapter))
        return result

    def adapter_versions(self) -> list[AdapterRecord]:
        """Every registered version."""
        result: list[AdapterRecord] = self._get(self._actor.adapter_versions.remote())
        return result

    def set_limits(self, scope: str, bounds: Limits) -> None:
        """Bound what a tenant or a key may use: see `cluster.budget.limits`."""
        self._get(self._actor.set_limits.remote(scope, bounds, self._name, True))

    def limits(self) -> dict[str, Limits]:
        """Every bounded scope and its limits."""
        result: dict[str, Limits] = self._get(self._actor.limits.remote())
        return result

    def set_prices(self, book: PriceBook) -> None:
        """Put a price book in force."""
        self._get(self._actor.set_prices.remote(book, self._name))

    def bill(
        self, tenant: str, start: float, end: float, prices: PriceBook | None = None
    ) -> dict[str, Any]:
        """What a tenant used and what it costs, at the prices in force or at `prices`."""
        asked = self._actor.bill.remote(tenant, start, end, prices)
        result: dict[str, Any] = self._get(asked)
        return result

    def exported(self, version: AdapterVersion, signed_by: str) -> None:
        """Record that `version` left the cluster in a bundle."""
        self._get(self._actor.exported.remote(version, signed_by, self._name))

    def card(self, version: AdapterVersion, *, leaving: bool = False) -> str:
        """The model card of a version, as Markdown."""
        return str(self._get(self._actor.card.remote(version, leaving)))

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
    """Awaitable calls, for Serve deployments. Errors arrive as the actor raised them.

    `actor` is who asked for a change.
    """

    def __init__(self) -> None:
        self._actor: Any = _actor()

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = _actor()
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except ray.exceptions.RayActorError as error:
            # The next call looks for the control plane that is up then.
            self._actor = None
            raise AwayError(_AWAY) from error

    async def resolve_key(self, digest: str) -> Principal | None:
        """The principal behind a key's digest."""
        result: Principal | None = await self._call("resolve_key", digest)
        return result

    async def table(self) -> RoutingTable:
        """The present routing table."""
        result: RoutingTable = await self._call("table")
        return result

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        """The table once it is newer than `generation`."""
        result: RoutingTable = await self._call("watch", generation, timeout_s)
        return result

    async def desired(self) -> list[ServedAdapter]:
        """What an engine replica must hold."""
        result: list[ServedAdapter] = await self._call("desired")
        return result

    async def wanted(self, int_id: int) -> ServedAdapter | None:
        """The version with `int_id`, if engines are to hold it."""
        result: ServedAdapter | None = await self._call("wanted", int_id)
        return result

    async def appeal(self, version: AdapterVersion, reason: str, actor: str) -> None:
        """Let a version that a rollout refused be tried again."""
        await self._call("appeal", version, reason, actor)

    async def report(self, reports: list[Report]) -> None:
        """Tell what a gateway saw of the rollouts under way."""
        await self._call("report", reports)

    async def judge(self, trace_id: str, version: AdapterVersion, found: Arm) -> bool:
        """Count what became of an answer on trial."""
        return bool(await self._call("judge", trace_id, version, found))

    async def spend(
        self, settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | Refusal]:
        """Settle what requests have used, and reserve what the next may use."""
        result: list[Room | Refusal] = await self._call("spend", settlements, reservations)
        return result

    async def register_writer(self, writer: str) -> None:
        """Have a writer of the audit log on the registry's list."""
        await self._call("register_writer", writer)

    async def tell_use(self, writer: str, head: Head, uses: list[TokenUse]) -> int:
        """Tell the meter what was used, and how far the log has come."""
        return int(await self._call("tell_use", writer, head, uses))

    async def enqueue_labels(self, tasks: list[LabelTask]) -> int:
        """Put traces before the experts."""
        return int(await self._call("enqueue_labels", tasks))

    async def claim_labels(
        self, tenant: str, annotator: str, limit: int, adapters: Sequence[str] = ()
    ) -> list[LabelTask]:
        """Lease tasks to an annotator."""
        result: list[LabelTask] = await self._call(
            "claim_labels", tenant, annotator, limit, list(adapters)
        )
        return result

    async def submit_labels(self, tenant: str, given: list[GivenLabel]) -> int:
        """Store experts' labels."""
        return int(await self._call("submit_labels", tenant, given))

    async def label_counts(self, tenant: str) -> dict[str, int]:
        """The state of the label queue."""
        result: dict[str, int] = await self._call("label_counts", tenant)
        return result

    async def issue_key(self, request: KeyRequest, actor: str, by_operator: bool) -> IssuedKey:
        """Create an API key."""
        result: IssuedKey = await self._call("issue_key", request, actor, by_operator)
        return result

    async def revoke_key(self, key_id: str, actor: str) -> None:
        """End a key."""
        await self._call("revoke_key", key_id, actor)

    async def keys(self, tenant: str | None) -> list[KeyRecord]:
        """What may be known of every key, or of a tenant's."""
        result: list[KeyRecord] = await self._call("listed_keys", tenant)
        return result

    async def change_key(
        self, key_id: str, wanted: KeyChange, actor: str, by_operator: bool
    ) -> None:
        """Give a key another alias, other adapters or another end."""
        await self._call("change_key", key_id, wanted, actor, by_operator)

    async def key_spend(self, key_id: str) -> float:
        """US dollars that a key has spent on tokens."""
        return float(await self._call("key_spend", key_id))

    async def set_limits(self, scope: str, bounds: Limits, actor: str, by_operator: bool) -> None:
        """Bound what a tenant or a key may use."""
        await self._call("set_limits", scope, bounds, actor, by_operator)

    async def limits(self, scope: str) -> Limits:
        """The limits of one tenant or key."""
        result: Limits = await self._call("limits_of", scope)
        return result

    async def bill(
        self,
        tenant: str,
        start: float,
        end: float,
        prices: PriceBook | None,
        adapters: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What a tenant used and what it costs; with `adapters`, of those alone."""
        result: dict[str, Any] = await self._call("bill", tenant, start, end, prices, adapters)
        return result

    async def owner(self, adapter: str) -> str | None:
        """The tenant an adapter belongs to, or None where there is no such adapter."""
        result: str | None = await self._call("owner", adapter)
        return result

    async def adapter_versions(self) -> list[AdapterRecord]:
        """Every registered version."""
        result: list[AdapterRecord] = await self._call("adapter_versions")
        return result

    async def card(self, version: AdapterVersion) -> str:
        """The model card of a version, as Markdown."""
        return str(await self._call("card", version))

    async def grant(self, adapter: str, tenant: str, granted: bool, actor: str) -> None:
        """Let a tenant reach an adapter, or no longer."""
        await self._call("grant", adapter, tenant, granted, actor)

    async def kill(self, adapter: str, reason: str, actor: str) -> KillReport:
        """Switch an adapter off everywhere."""
        result: KillReport = await self._call("kill", adapter, reason, actor)
        return result

    async def revive(
        self, adapter: str, actor: str, version: AdapterVersion | None
    ) -> SwapReport | None:
        """Let a killed adapter serve again, with another version where one is named; None where
        none was live."""
        result: SwapReport | None = await self._call("revive", adapter, actor, version)
        return result

    async def start_rollout(
        self, version: AdapterVersion, plan: RolloutPlan, actor: str
    ) -> Rollout:
        """Bring a passed version to the users step by step."""
        result: Rollout = await self._call("start_rollout", version, plan, actor)
        return result

    async def end_rollout(self, adapter: str, reason: str, actor: str) -> None:
        """Take the adapter's candidate back."""
        await self._call("end_rollout", adapter, reason, actor)

    async def promote_rollout(self, adapter: str, actor: str) -> None:
        """Promote the candidate of a rollout that waits for a person."""
        await self._call("promote_rollout", adapter, actor)

    async def rollouts(self, limit: int, owner: str | None) -> list[Rollout]:
        """The newest rollouts, newest first; of one tenant's adapters, or of all."""
        result: list[Rollout] = await self._call("rollouts", limit, owner)
        return result
