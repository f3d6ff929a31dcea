"""Dataset versions: the rows and the manifest that data jobs write and training reads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_NAMED_FAULTS = 1000


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class Row(BaseModel):
    """One training example; stored with `prompt` as a JSON list of messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    row_id: str
    adapter: str
    prompt: tuple[Message, ...]
    completion: str
    source: Literal["history", "trace"]
    trace_id: str = ""
    annotator: str = ""


#: Columns of the stored rows.
COLUMNS = tuple(Row.model_fields)


class Fault(BaseModel):
    """A row that was left out, where it stood and why."""

    model_config = ConfigDict(frozen=True)
    file: str
    line: int
    reason: str


class DatasetManifest(BaseModel):
    """What a dataset version is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    name: str
    version: int
    rows: int
    from_traces: int
    """Rows that came from production traces with an expert's label."""
    parent: int | None = None
    """The version whose rows this one extends."""
    sources: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each source, by its file name or its dataset version."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Reason to count of rows left out."""
    broken: tuple[Fault, ...] = ()
    """The broken rows by name, at most `MAX_NAMED_FAULTS`; `dropped` has the full count."""
    licence: str = Field(default="not stated", max_length=256)
    """Of the texts it is made of, as its builder states it."""
    generated: bool = False
    """Whether the rows were written by a generator, not by people."""
