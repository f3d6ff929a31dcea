"""Models: base models, and the targets that requests are answered by."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from cluster.config import ConfigModel
from cluster.records.adapter import ServedAdapter

UNSTATED = "not stated"


class BaseModelInfo(ConfigModel):
    """A base model as its directory tells."""

    name: str = Field(max_length=128)
    path: str
    digest: str = Field(pattern="[0-9a-f]{64}")
    licence: str = Field(default=UNSTATED, max_length=64)
    permitted_use: str = Field(default=UNSTATED, max_length=2000)


@dataclass(frozen=True)
class Target:
    """A model of the fleet that a request can be answered by. A base model is one like any other.

    Its profile is kept apart (`serve_app.generation.targets`): a target travels with each request.
    """

    id: str
    """Label of the adapter version, or name of the base model: what usage is charged to."""
    provider: str
    """Name of the provider that answers for it."""
    adapter: ServedAdapter | None = None
    """The version that the engine applies to its base model, where it applies one."""


@dataclass(frozen=True)
class ModelProfile:
    """What is known of a target, for routing by capability, cost, latency and clearance."""

    window: int
    """Context window in tokens: prompt and answer together."""
    capabilities: frozenset[str]
    """Of `chat`, `completion`, `tools`, `json_schema`, `logprobs` and `stream`."""
    licence: str = UNSTATED
    clearance: frozenset[str] = frozenset()
    """Classes of data it may see; empty is no restriction."""
    input_usd: float | None = None
    """US dollars a million tokens; None where no price is set."""
    output_usd: float | None = None
    first_token_ms: float | None = None
    """Measured by this gateway, an exponential moving average; None while there is none."""
    token_ms: float | None = None
    """Milliseconds an output token, measured likewise."""
