"""Configuration of the demonstration."""

from __future__ import annotations

from pydantic import Field

from cluster.config import ConfigModel
from cluster.launch.config import LocalConfig
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


class DemoConfig(LocalConfig):
    """One run of the demonstration: a local cluster, and what is done with it.

    It wants an empty registry: it begins with the first version of each adapter.
    """

    train: str
    """Configuration of the training runs."""
    data: str
    """Configuration of the import job."""
    adapters: int | None = Field(default=None, ge=2)
    """Domains of the workload that get an adapter; None is all."""
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
