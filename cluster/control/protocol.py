"""What the control plane and its callers exchange. Frozen values; no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from cluster.records.adapter import ServedAdapter
from cluster.types import EVERYONE

ACTOR_NAME = "headrace-control"
NAMESPACE = "headrace"
SERVE_APP = "headrace"
ENGINE_DEPLOYMENT = "engine"
PLAIN_PREFIX = "engine-plain-"
"""Of the deployments of engines without adapters."""


class Caller(Protocol):
    """Who asks for an adapter: a principal, or a request of one."""

    @property
    def tenant(self) -> str: ...

    @property
    def models(self) -> frozenset[str]:
        """The adapters its key is limited to; empty is no limit beyond the tenant's."""
        ...


@dataclass(frozen=True)
class Split:
    """A candidate beside the live version of its adapter."""

    rollout: int
    phase: int
    candidate: ServedAdapter
    percent: float
    """Of the users who get its answers; of the requests it is tried on, in a shadow."""
    shadow: bool
    aside: frozenset[str] = frozenset()
    """Whom the live version answers all the same: see `cluster.rollout.accounts`."""


@dataclass(frozen=True)
class RoutingTable:
    """Which version answers for each adapter name. A higher generation replaces a lower one."""

    generation: int
    live: dict[str, ServedAdapter] = field(default_factory=dict)
    access: dict[str, frozenset[str]] = field(default_factory=dict)
    """The tenants that reach each adapter; an adapter that is not here is reached by none."""
    killed: frozenset[str] = frozenset()
    """Adapters that are switched off; none of them is live."""
    splits: dict[str, Split] = field(default_factory=dict)
    """Candidates beside the live versions, by adapter."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of the load, by adapter, rounded; those with next to none are left out."""
    keys: int = 0
    """Grows when a key ends: caches of keys are dropped then."""

    def reaches(self, caller: Caller, name: str) -> bool:
        """Whether `caller` may know of the adapter."""
        tenants = self.access.get(name, frozenset())
        limited = bool(caller.models) and name not in caller.models
        return not limited and (caller.tenant in tenants or EVERYONE in tenants)

    def serves(self, caller: Caller, name: str) -> bool:
        """Whether the adapter is live and within the caller's reach."""
        return name in self.live and self.reaches(caller, name)

    def resolve(self, caller: Caller, model: str) -> ServedAdapter | None:
        """The live adapter that `model` names for `caller`, by adapter name or exact version."""
        name, mark, _ = model.partition("@")
        if not self.serves(caller, name):
            return None
        adapter = self.live[name]
        return None if mark and adapter.label != model else adapter

    def stopped(self, caller: Caller, model: str) -> bool:
        """Whether `model` names an adapter of the caller's that is switched off."""
        name = model.partition("@")[0]
        return name in self.killed and self.reaches(caller, name)

    def without_probes(self) -> RoutingTable:
        """The table without golden probes: what a gateway needs, and sends with each request."""
        live = {name: replace(adapter, golden=()) for name, adapter in self.live.items()}
        splits = {
            name: replace(split, candidate=replace(split.candidate, golden=()))
            for name, split in self.splits.items()
        }
        return replace(self, live=live, splits=splits)


@dataclass(frozen=True)
class Proof:
    """What one replica showed of a loaded version."""

    replica: str
    int_id: int
    digest: str
    mean_difference: float
    """Mean absolute difference from the trainer's log-probabilities, in nats a token."""


@dataclass(frozen=True)
class SwapReport:
    """A finished promotion; times in seconds."""

    adapter: str
    previous: str | None
    current: str
    replicas: int
    proof_difference: float
    prepare_s: float
    flip_s: float
    drain_s: float
    removed: bool
    """Whether every replica confirmed that the old version is gone."""


@dataclass(frozen=True)
class KillReport:
    """An adapter that was switched off; times in seconds."""

    adapter: str
    version: str | None
    """What was live."""
    aborted: int
    """Requests that were cut off."""
    confirmed: bool
    """Whether every engine replica confirmed; where not, the gateways refuse it all the same."""
    recorded: bool
    """Whether it is on record; where not, that is tried again, and a restart would forget it."""
    seconds: float


class Fleet(Protocol):
    """Every engine replica at once. Each call raises when any replica fails."""

    async def prepare(self, adapter: ServedAdapter) -> list[Proof]:
        """Load `adapter` everywhere and prove it; nothing is routed to it yet."""
        ...

    async def retire(self, int_id: int, timeout_s: float) -> bool:
        """Refuse new requests for `int_id`, wait for those in flight, and unload it; whether each
        replica's own list confirms it. A replica on which they outlast `timeout_s` keeps it."""
        ...

    async def remove(self, int_id: int) -> bool:
        """Unload `int_id` everywhere; whether each replica's own list confirms it."""
        ...

    async def kill(self, name: str) -> int:
        """Refuse every version of adapter `name` and cut off its requests; how many there were."""
        ...
