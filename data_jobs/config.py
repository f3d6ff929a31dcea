"""Configuration of the data jobs. Imports neither Ray nor a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from cluster.config import ConfigModel
from cluster.types import checked_name
from data_jobs.sources.history import HistorySource
from data_jobs.sources.parent import ParentSource
from data_jobs.sources.traces import TraceSource
from data_jobs.steps import Step

Source = Annotated[HistorySource | ParentSource | TraceSource, Field(discriminator="type")]


def _one_parent(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """A version extends one other; the manifest names it."""
    if sum(isinstance(source, ParentSource) for source in sources) > 1:
        raise ValueError("a dataset version has one parent: name one source of type parent")
    return sources


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
    """The dataset job: the rows of its sources become a new version."""

    adapter: str
    tenant: str
    """Whose labels it is built from."""
    version: int
    out: str
    """Folder under which `NAME/VERSION` is published."""
    sources: Annotated[tuple[Source, ...], AfterValidator(_one_parent)] = Field(
        min_length=1, max_length=64
    )
    """Where its rows come from, in order."""
    steps: tuple[Step, ...] = Field(default=(), max_length=64)
    """What is done to them before they are published, in order."""
    licence: str = Field(default="not stated", max_length=256)
    """Of the texts, for the manifest and the model cards of what is fitted on them."""
    generated: bool = False
    """Whether the source is generated."""
