"""`history`: labelled turns from before Headrace, as JSON lines."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.config import ConfigModel
from cluster.storage import file_digest
from data_jobs.sources.base import SourceContext

if TYPE_CHECKING:
    import ray.data


class HistorySource(ConfigModel):
    """JSON lines of labelled turns; masked as serving masks."""

    type: Literal["history"] = "history"
    path: str

    def read(self, context: SourceContext) -> ray.data.Dataset:
        """See `RowSource`."""
        from data_jobs.rows import from_history
        from data_jobs.sources.logs import read_lines

        parse = functools.partial(from_history, adapter=context.adapter)
        return read_lines([Path(self.path)]).map(parse)

    def digests(self) -> dict[str, str]:
        """See `RowSource`."""
        path = Path(self.path)
        return {path.name: file_digest(path)}
