"""The contract of a dataset source: where the rows of a version come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cluster.records.labels import Label

if TYPE_CHECKING:
    import ray.data

#: Rows a task reads: on small sets, processes cost more than the rows.
_ROWS_A_BLOCK = 20_000


@dataclass(frozen=True)
class SourceContext:
    """What a source may need beside its own configuration."""

    adapter: str
    labels: tuple[Label, ...] = ()
    """The labels given for the adapter."""


class RowSource(Protocol):
    """Reads rows with the columns of `data_jobs.rows.EMPTY`; one that cannot be used has a `fault`
    and is counted, never dropped silently."""

    def read(self, context: SourceContext) -> ray.data.Dataset | None:
        """The rows, or None where there is nothing to read."""
        ...

    def digests(self) -> dict[str, str]:
        """SHA-256 of what is read, by file name or dataset version, for the manifest."""
        ...


def blocks(rows: int) -> int:
    """How many Ray Data blocks `rows` rows are read in."""
    return 1 + rows // _ROWS_A_BLOCK
