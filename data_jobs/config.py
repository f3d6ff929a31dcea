"""Configuration of the data jobs. Imports neither Ray nor a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cluster.config import ConfigModel
from cluster.types import checked_name


class ImportConfig(ConfigModel):
    """The import job: a labelled source becomes a replayable workload."""

    out: str
    """Folder to write; see `cluster.workload` for its layout."""
    tenant: str
    """Whose texts they are: no other tenant's prompts show a passage of them."""
    shared: bool = False
    """Whether the source's documents may stand in every tenant's prompts; turns never do."""
    document_values: Literal["mask", "show"] = "mask"
    """Personal values in the source's documents. With `show` an answer may repeat them, such as the
    number of a hotline that a document tells."""
    data: str | None = None
    """MultiDoGO folder; without it the generated retail workload is used."""
    domains: tuple[str, ...] = ("insurance", "finance", "media")
    """Preferred domains; others fill up to three where these are missing."""
    history_rows: int = 300
    """Turns a domain whose labels are imported as historical logs."""
    traffic_rows: int = 6000
    """Most turns a domain kept for replay."""
    heldout_rows: int = 1000
    """Most held-out turns a domain."""
    seed: int = 0

    _name = field_validator("tenant")(checked_name)


class DatasetConfig(ConfigModel):
    """The dataset job: history, or a parent version and labelled traces, become a new version."""

    adapter: str
    tenant: str
    """Whose labels it is built from."""
    version: int
    out: str
    """Folder under which `NAME/VERSION` is published."""
    history: str | None = None
    """JSON lines of labelled turns to start from."""
    parent: str | None = None
    """A published dataset version whose rows come along."""
    traces: str | None = None
    """Audit directory; its traces with an expert's label for `adapter` become rows."""
    shuffle_labels_seed: int | None = None
    """Deal the completions out at random: makes the candidate that a gate has to refuse."""
    licence: str = Field(default="not stated", max_length=256)
    """Of the texts, for the manifest and the model cards of what is fitted on them."""
    generated: bool = False
    """Whether the source is generated."""
