"""Adapter versions: as published, as registered, and as engines hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt

from cluster.records.evaluation import EvaluationReport
from cluster.types import AdapterVersion, VersionState, checked_name

#: An engine answers all of a version's at once.
MAX_PROBES = 64


class GoldenProbe(BaseModel):
    """A prompt, its continuation and the trainer's log-probability of each token."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    prompt_token_ids: tuple[NonNegativeInt, ...]
    target_token_ids: tuple[NonNegativeInt, ...]
    logprobs: tuple[FiniteFloat, ...]
    """Of the continuation's tokens."""
    prompt_logprobs: tuple[FiniteFloat, ...] = ()
    """Of the prompt's tokens after its first, where they are known."""


class AdapterManifest(BaseModel):
    """The lineage, the proof material and the evaluation of one version."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: Annotated[str, AfterValidator(checked_name)]
    version: int = Field(ge=1, lt=1 << 31)
    base_model: str = Field(max_length=128)
    base_digest: str = Field(max_length=64)
    rank: int = Field(ge=1)
    dataset: str = Field(max_length=80)
    dataset_digest: str = Field(max_length=64)
    run_id: str = Field(max_length=128)
    seconds: float = Field(ge=0)
    golden: tuple[GoldenProbe, ...] = Field(max_length=MAX_PROBES)
    evaluation: EvaluationReport
    recipe: dict[str, str | int | float] = Field(default_factory=dict)
    """How it was fitted, such as its learning rate, for the model card."""

    @property
    def id(self) -> AdapterVersion:
        """The version this manifest describes."""
        return AdapterVersion(self.name, self.version)


@dataclass(frozen=True)
class AdapterRecord:
    """A registered adapter version."""

    id: AdapterVersion
    int_id: int
    state: VersionState
    path: str
    digest: str
    reason: str
    retrain: str
    """Why it has to be fitted again, or empty."""
    manifest: AdapterManifest


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
    def id(self) -> AdapterVersion:
        """The version."""
        return AdapterVersion(self.name, self.version)

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"
