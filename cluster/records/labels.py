"""Labels: what an expert is shown of a trace, and what the expert answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.types import TEXT, checked_name


class LabelTask(BaseModel):
    """What an expert sees of a trace; text is masked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trace_id: str
    tenant: str
    reason: str
    adapter: str
    version: str
    text: str
    answer: str
    confidence: float
    prompt: tuple[dict[str, str], ...]
    metadata: dict[str, str] = Field(default_factory=dict)


class GivenLabel(BaseModel):
    """An expert's verdict on one trace."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trace_id: str = Field(max_length=64, pattern=TEXT)
    adapter: str = Field(max_length=63)
    answer: str = Field(max_length=8192, pattern=TEXT)
    rationale: str = Field(default="", max_length=2048, pattern=TEXT)
    annotator: str = Field(max_length=64, pattern=TEXT)

    _name = field_validator("adapter")(checked_name)


class Label(BaseModel):
    """A label as datasets are built from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trace_id: str
    adapter: str
    answer: str
    rationale: str
    annotator: str
    reason: str
    """Why the trace was in the queue."""
