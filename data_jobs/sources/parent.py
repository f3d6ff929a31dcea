"""`parent`: every row of a published dataset version, which the new version extends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.config import ConfigModel
from cluster.dataset import ROWS, read_manifest
from cluster.storage import STABLE
from data_jobs.sources.base import SourceContext, blocks

if TYPE_CHECKING:
    import ray.data


class ParentSource(ConfigModel):
    """The directory of a published dataset version."""

    type: Literal["parent"] = "parent"
    path: str

    def read(self, _context: SourceContext) -> ray.data.Dataset:
        """See `RowSource`."""
        import ray.data

        from data_jobs.rows import EMPTY

        folder = Path(self.path)
        extra = {key: EMPTY[key] for key in ("file", "line", "fault")}
        count = blocks(read_manifest(folder).rows)
        rows = ray.data.read_parquet(str(folder / ROWS), override_num_blocks=count)
        return rows.map(lambda row: {**EMPTY, **row, **extra})

    def digests(self) -> dict[str, str]:
        """See `RowSource`."""
        folder = Path(self.path)
        manifest = read_manifest(folder)
        digest = (folder / STABLE).read_text(encoding="utf-8").strip()
        return {f"dataset {manifest.name}@{manifest.version}": digest}
