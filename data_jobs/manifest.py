"""Publishes a dataset version: rows as Parquet, the manifest beside them, all of it or none."""

from __future__ import annotations

from pathlib import Path

import ray.data

from cluster import storage
from cluster.dataset import MANIFEST, ROWS
from cluster.records.dataset import COLUMNS, DatasetManifest, Fault


def publish_dataset(rows: ray.data.Dataset, manifest: DatasetManifest, out: Path) -> Path:
    """Write `rows` and `manifest` as `out/NAME/VERSION` and return that path."""
    final = storage.confined(out, manifest.name, str(manifest.version))
    with storage.publishing(final) as staged:
        rows.select_columns(list(COLUMNS)).write_parquet(str(staged / ROWS))
        (staged / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return final


def fault(row: dict[str, object]) -> Fault:
    """The manifest's form of a broken row."""
    return Fault(file=str(row["file"]), line=int(str(row["line"])), reason=str(row["fault"]))
