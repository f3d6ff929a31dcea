"""Configuration of one turn of the wheel."""

from __future__ import annotations

from pydantic import Field

from cluster.config import BaseModelRef, ConfigModel
from cluster.records.gate import DEFAULT_RULES, GateRules


class TrafficConfig(ConfigModel):
    """The replayed load."""

    requests: int = 3000
    """Live requests before labelling."""
    focus_share: float = Field(default=0.75, ge=0, le=1)
    """Share of them for the adapter that will be improved."""
    concurrency: int = 24
    stream_share: float = Field(default=0.1, ge=0, le=1)
    """Share of requests that ask for a stream."""
    background_rps: float = 1.0
    """Requests a second that keep flowing while jobs train."""
    check_requests: int = 150
    """Held-out turns a domain sent through the gateway at the end."""


class SwapConfig(ConfigModel):
    """Load around the swap."""

    requests_before: int = 100
    requests_after: int = 200
    concurrency: int = 12


class WheelConfig(ConfigModel):
    """One turn of the wheel. Paths are relative to the repository."""

    base_model: BaseModelRef
    """Change this line to stand the adapters on another model."""
    database: str = ""
    """Of the registry, postgresql://...; where empty, SQLite in the working folder. An empty one:
    a turn begins with the first version of each adapter."""
    serve: str
    train: str
    data: str
    num_cpus: int = 10
    """Logical CPUs Ray schedules with; replicas share the machine's real ones."""
    parallel_runs: int = 3
    """First versions trained at a time: one run's start-up fills the gaps of the other's."""
    candidate_epochs: int = 5
    """Passes of the improved version over its dataset."""
    shuffled_epochs: int = 1
    """Passes of the candidate on shuffled labels, which the gate must refuse."""
    gate: GateRules = DEFAULT_RULES
    """What every candidate is judged by."""
    traffic: TrafficConfig = TrafficConfig()
    swap: SwapConfig = SwapConfig()
