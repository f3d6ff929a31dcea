"""What the control plane offers its callers: one Protocol a service, without SQL or Ray.

A new verb is a method here, the same in the service that implements it, and where it is called
from. `by` is who asks for a change, as the audit log will name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cluster.audit import Head
from cluster.budget.exchange import Reservation, Settlement
from cluster.budget.ledger import LimitExceeded, Room
from cluster.budget.prices import PriceBook
from cluster.control.protocol import KillReport, RoutingTable, SwapReport
from cluster.records.adapter import AdapterRecord, ServedAdapter
from cluster.records.dataset import DatasetManifest
from cluster.records.gate import GateRules
from cluster.records.keys import IssuedKey, KeyChange, KeyRecord, KeyRequest
from cluster.records.labels import GivenLabel, Label, LabelTask
from cluster.records.limits import Limits
from cluster.records.model import BaseModelInfo
from cluster.records.usage import MeteredUsage
from cluster.rollout.evidence import VariantStats
from cluster.rollout.gate import Verdict
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.state import Report, Rollout
from cluster.types import AdapterVersion, Principal


class Keys(Protocol):
    """API keys and the tenants they belong to."""

    async def issue(self, request: KeyRequest, by: str, *, by_operator: bool = False) -> IssuedKey:
        """Create a key, and its tenant where that is new. Bounds that an operator sets are an
        operator's to widen."""
        ...

    async def change(
        self, key_id: str, change: KeyChange, by: str, *, by_operator: bool = False
    ) -> None:
        """Give a key another alias, other adapters or another end, on every gateway at once.

        Raises:
            NotFoundError: there is no such key in use.
        """
        ...

    async def revoke(self, key_id: str, by: str) -> None:
        """End a key, on every gateway at once; ending it twice is ending it once.

        Raises:
            NotFoundError: there is no such key.
        """
        ...

    async def listed(self, tenant: str | None = None) -> list[KeyRecord]:
        """Every key, or a tenant's, oldest first, without its secret."""
        ...

    async def resolve(self, digest: str) -> Principal | None:
        """The principal behind a key's digest; None where it is unknown or over."""
        ...

    async def suspend_tenant(self, tenant: str, suspended: bool, by: str) -> None:
        """Let none of a tenant's keys through, or let them through again."""
        ...


class Ledger(Protocol):
    """Limits, prices, and what may still be used of them now."""

    async def exchange(
        self, settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | LimitExceeded]:
        """Settle what requests have used, then reserve what the next may use, in order.

        Settling twice is settling once.
        """
        ...

    async def set_limits(
        self, scope: str, bounds: Limits, by: str, *, by_operator: bool = False
    ) -> None:
        """Bound a tenant or a key, named as `cluster.records.limits` scopes, or no longer.

        Raises:
            NotFoundError: there is no such tenant or key.
        """
        ...

    async def limits(self, scope: str) -> Limits:
        """The limits of one tenant or key."""
        ...

    async def all_limits(self) -> dict[str, Limits]:
        """Every bounded scope and its limits."""
        ...

    async def set_prices(self, book: PriceBook, by: str) -> None:
        """Put a price book in force; what was used before keeps the price it had."""
        ...


class Usage(Protocol):
    """The meter: what was used, and what it costs."""

    async def register_writer(self, writer: str) -> None:
        """Register a writer of the audit log before it writes; no other is billed."""
        ...

    async def record(self, writer: str, head: Head, rows: list[MeteredUsage]) -> int:
        """Enter usage and how far its writer has come; returns how many rows were new.

        Ranges that are known already are skipped: delivery is at least once.
        """
        ...

    async def writers(self) -> tuple[dict[str, Head], dict[str, Head]]:
        """The latest known entry of each writer of the audit log: of requests, and of changes."""
        ...

    async def bill(
        self,
        tenant: str,
        start: float,
        end: float,
        prices: PriceBook | None = None,
        adapters: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What a tenant used from `start` until before `end` (Unix seconds) and what it costs, at
        the prices then in force or at `prices`; with `adapters`, of those alone.

        The audit log is reconciled first, so that all that is in it is on the bill.

        Raises:
            NotFoundError: there is no such tenant.
        """
        ...

    async def key_spend(self, key_id: str) -> float:
        """US dollars that a key has spent on tokens, in the present period of its budget where it
        has one."""
        ...


class Labels(Protocol):
    """The label queue, tenant by tenant."""

    async def enqueue(self, tasks: list[LabelTask]) -> int:
        """Add traces to the queue; returns how many were new."""
        ...

    async def claim(
        self, tenant: str, annotator: str, limit: int, adapters: Sequence[str] = ()
    ) -> list[LabelTask]:
        """Lease tasks to an annotator; with `adapters`, of what those answered only."""
        ...

    async def submit(self, tenant: str, given: list[GivenLabel]) -> int:
        """Store labels; the same label twice is one.

        Raises:
            ConflictError: a trace is claimed or labelled by another annotator.
            NotFoundError: a trace is not in the tenant's queue.
        """
        ...

    async def given(self, tenant: str, adapter: str) -> list[Label]:
        """The labels given for one adapter."""
        ...

    async def counts(self, tenant: str) -> dict[str, int]:
        """Tasks by state, and by reason as `reason.NAME`."""
        ...


class Datasets(Protocol):
    """Dataset versions."""

    async def register(self, path: str) -> DatasetManifest:
        """Register a published dataset version."""
        ...

    async def listed(self) -> list[DatasetManifest]:
        """Every dataset version, by name and number."""
        ...


class Adapters(Protocol):
    """The catalogue of adapter versions and base models: what there is, and whose it is."""

    async def register(self, path: str, owner: str, by: str) -> AdapterVersion:
        """Check a published directory and register it as a candidate of tenant `owner`'s.

        Raises:
            ArtifactError: the directory cannot be trusted.
            ConflictError: the version is registered, or the adapter another tenant's.
        """
        ...

    async def version(self, version: AdapterVersion) -> AdapterRecord:
        """One registered version.

        Raises:
            NotFoundError: it is not registered.
        """
        ...

    async def live(self, adapter: str) -> AdapterRecord | None:
        """The live version, also of an adapter that is switched off: candidates are compared with
        it."""
        ...

    async def listed(self) -> list[AdapterRecord]:
        """Every registered version."""
        ...

    async def next_version(self, name: str) -> int:
        """The number that the next version of `name` gets."""
        ...

    async def owner(self, adapter: str) -> str | None:
        """The tenant that an adapter belongs to; None where there is no such adapter."""
        ...

    async def grant(self, adapter: str, tenant: str, granted: bool, by: str) -> None:
        """Let `tenant` reach `adapter`, or no longer; `*` is every tenant."""
        ...

    async def card(self, version: AdapterVersion, *, leaving: bool = False) -> str:
        """The model card as Markdown; where it leaves the cluster, without who else reaches it."""
        ...

    async def record_export(self, version: AdapterVersion, signed_by: str, by: str) -> None:
        """Record that a version left the cluster in a bundle."""
        ...

    async def base_model(self, digest: str | None = None) -> BaseModelInfo:
        """The base model with `digest`; without, the one that serves."""
        ...


class Evaluations(Protocol):
    """The evaluation gate and its rules."""

    async def set_rules(self, adapter: str, rules: GateRules, by: str) -> None:
        """Judge candidates of `adapter` by `rules` from now on."""
        ...

    async def rules(self, adapter: str) -> GateRules:
        """The rules that candidates of `adapter` are judged by."""
        ...

    async def judge(self, version: AdapterVersion, by: str) -> Verdict:
        """Judge a candidate by its adapter's rules, and record the verdict.

        Raises:
            ConflictError: it is no candidate, or was not compared with what is live.
        """
        ...


class Serving(Protocol):
    """What serves now, and how that is changed."""

    async def table(self) -> RoutingTable:
        """The routing table, without golden probes."""
        ...

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        """The table once it is newer than `generation`, or as it is after `timeout_s` seconds."""
        ...

    async def desired(self) -> list[ServedAdapter]:
        """What engine replicas have to hold, most urgent first, without golden probes."""
        ...

    async def desired_version(self, int_id: int) -> ServedAdapter | None:
        """The version with the engine's id `int_id`, with its golden probes, if it is desired."""
        ...

    async def serve_base(self, info: BaseModelInfo, by: str) -> list[str]:
        """Make `info` the base model that serves; labels of the versions to be fitted again."""
        ...

    async def promote(self, version: AdapterVersion, by: str) -> SwapReport:
        """Swap a passed version in, or one that served before, while the others keep serving.

        Raises:
            ConflictError: it has not passed the gate, or its adapter is switched off.
            ArtifactError: its directory is not what was registered.
            SwapError: it was not verified on every replica; the serving version is untouched.
        """
        ...

    async def kill(self, adapter: str, reason: str, by: str) -> KillReport:
        """Switch an adapter off everywhere, without waiting for a swap or a disk.

        Raises:
            NotFoundError: there is no such adapter.
        """
        ...

    async def revive(
        self, adapter: str, by: str, version: AdapterVersion | None = None
    ) -> SwapReport | None:
        """Let a killed adapter serve again, verified anew: with the version that was live, or with
        `version`. None where there is neither.

        Raises:
            ConflictError: it is not killed, or `version` has not passed the gate.
            SwapError: it was not verified on every replica; the adapter stays off.
        """
        ...


class Rollouts(Protocol):
    """Candidates on their way to the users."""

    async def start(self, version: AdapterVersion, plan: RolloutPlan, by: str) -> Rollout:
        """Bring a passed version to the users step by step.

        Raises:
            ConflictError: it has not passed the gate, its adapter is switched off or has no live
                version, or another rollout of it is under way.
        """
        ...

    async def end(self, adapter: str, reason: str, by: str) -> None:
        """Withdraw the adapter's candidate.

        Raises:
            NotFoundError: no rollout of it is under way.
        """
        ...

    async def promote(self, adapter: str, by: str) -> None:
        """Promote the candidate of a rollout that waits for approval.

        Raises:
            ConflictError: it has not shown what it had to.
        """
        ...

    async def appeal(self, version: AdapterVersion, reason: str, by: str) -> None:
        """Let a version that a rollout refused be tried again, on record.

        Raises:
            ConflictError: no rollout refused it.
        """
        ...

    async def listed(self, limit: int, owner: str | None = None) -> list[Rollout]:
        """The newest rollouts, newest first; of one tenant's adapters, or of all."""
        ...

    async def report(self, reports: list[Report]) -> None:
        """Count evidence that a gateway gathered; reports are numbered, and count once."""
        ...

    async def record_outcome(
        self, trace_id: str, version: AdapterVersion, found: VariantStats
    ) -> bool:
        """Count what became of an answer on trial; whether anything of it was new."""
        ...


class Events(Protocol):
    """What was changed, and by whom."""

    async def newest(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest changes, newest first."""
        ...


class Control(Protocol):
    """All services; what `cluster.control.plane` composes and `cluster.control.client` reaches."""

    @property
    def keys(self) -> Keys: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def datasets(self) -> Datasets: ...
    @property
    def adapters(self) -> Adapters: ...
    @property
    def evaluations(self) -> Evaluations: ...
    @property
    def serving(self) -> Serving: ...
    @property
    def rollouts(self) -> Rollouts: ...
    @property
    def events(self) -> Events: ...


#: The services by name, with the contract of each: all that can be called from outside.
SERVICES: dict[str, type] = {
    "keys": Keys,
    "ledger": Ledger,
    "usage": Usage,
    "labels": Labels,
    "datasets": Datasets,
    "adapters": Adapters,
    "evaluations": Evaluations,
    "serving": Serving,
    "rollouts": Rollouts,
    "events": Events,
}


def verbs(contract: type) -> frozenset[str]:
    """The methods of a contract."""
    return frozenset(name for name in vars(contract) if not name.startswith("_"))
