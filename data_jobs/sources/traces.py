"""`traces`: production traces that an expert labelled for the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.config import ConfigModel
from cluster.storage import file_digest
from data_jobs.sources.base import SourceContext

if TYPE_CHECKING:
    import ray.data


class TraceSource(ConfigModel):
    """The folder of the audit log; traces without a label give no row."""

    type: Literal["traces"] = "traces"
    path: str

    def read(self, context: SourceContext) -> ray.data.Dataset | None:
        """See `RowSource`."""
        import ray

        from data_jobs.rows import from_trace
        from data_jobs.sources.logs import read_lines

        if not context.labels:
            return None
        # One copy of the labels in the object store, not one in every task.
        shared = ray.put({label.trace_id: label for label in context.labels})
        adapter = context.adapter
        return read_lines(self._paths()).flat_map(
            lambda row: from_trace(row, adapter, ray.get(shared))
        )

    def digests(self) -> dict[str, str]:
        """See `RowSource`."""
        return {path.name: file_digest(path) for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(Path(self.path).glob("traces-*.jsonl"))
