"""Lines of log files as Ray Data rows, each with its file and line number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.data


def _numbered(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    path = Path(row["path"])
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            # A writer may still be in the middle of the last line; it is read by the next version.
            if line.endswith(b"\n"):
                yield {"file": path.name, "line": number, "raw": line}


def read_lines(paths: Sequence[Path]) -> ray.data.Dataset:
    """One row `{file, line, raw}` a line; files are read in parallel."""
    items = [{"path": str(path)} for path in sorted(paths)]
    return ray.data.from_items(items, override_num_blocks=max(1, len(items))).flat_map(_numbered)
