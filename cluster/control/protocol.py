"""What the control plane and its callers exchange. Frozen values; no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from cluster.adapters import GoldenProbe

ACTOR_NAME = "headrace-control"
NAMESPACE = "headrace"
SERVE_APP = "headrace"
ENGINE_DEPLOYMENT = "engine"


@dataclass(frozen=True)
class ServedAdapter:
    """A version as the engines must hold it."""

    name: str
    version: int
    int_id: int
    path: str
    digest: str
    golden: tuple[GoldenProbe, ...] = field(default=(), compare=False)
    """What the engine is proved by; the digest already covers it. Routing goes without."""

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class RoutingTable:
    """Which version answers for each adapter name. A higher generation replaces a lower one."""

    generation: int
    live: dict[str, ServedAdapter] = field(default_factory=dict)

    def resolve(self, model: str) -> ServedAdapter | None:
        """The live adapter that `model` names, by adapter name or exact version."""
        name, mark, _ = model.partition("@")
        adapter = self.live.get(name)
        return None if adapter is None or (mark and adapter.label != model) else adapter

    def unproved(self) -> RoutingTable:
        """The table without golden probes: what a gateway needs, and sends with each request."""
        live = {name: replace(adapter, golden=()) for name, adapter in self.live.items()}
        return RoutingTable(self.generation, live)


@dataclass(frozen=True)
class Proof:
    """What one replica showed of a loaded version."""

    replica: str
    int_id: int
    digest: str
    probes: int
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


class Fleet(Protocol):
    """Every engine replica at once. Each call raises when any replica fails."""

    async def prepare(self, adapter: ServedAdapter) -> list[Proof]:
        """Load `adapter` everywhere and prove it; nothing is routed to it yet."""
        ...

    async def drain(self, int_id: int, timeout_s: float) -> bool:
        """Refuse new requests for `int_id` and wait for those in flight; False on time-out."""
        ...

    async def remove(self, int_id: int) -> bool:
        """Unload `int_id` everywhere; whether each replica's own list confirms it."""
        ...
