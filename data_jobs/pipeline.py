"""The dataset pipeline on Ray Data: read, join labels, check, publish one immutable version."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from cluster.dataset import MAX_NAMED_FAULTS, ROWS, DatasetManifest, read_manifest
from cluster.errors import DataError
from cluster.storage import file_digest
from data_jobs.config import DatasetConfig
from data_jobs.manifest import fault, publish_dataset
from data_jobs.sources.logs import read_lines
from data_jobs.stages.rows import EMPTY, from_history, from_trace

_ROWS_A_BLOCK = 20_000


def build_dataset(config: DatasetConfig, labels: list[dict[str, Any]]) -> Path:
    """Build and publish the version that `config` describes; returns its path.

    Raises:
        DataError: no row survived.
    """
    parts, sources = _parts(config, labels)
    if not parts:
        raise DataError("a dataset needs a history, a parent or traces to be built from")
    rows = parts[0].union(*parts[1:]).materialize() if len(parts) > 1 else parts[0].materialize()
    good = rows.filter(expr="fault == ''").materialize()
    broken = rows.filter(expr="fault != ''")
    named = broken.select_columns(["file", "line", "fault"]).take(MAX_NAMED_FAULTS)
    count = good.count()
    if count == 0:
        raise DataError(f"no usable row for {config.adapter}; first faults: {named[:3]}")
    if config.shuffle_labels_seed is not None:
        good = _with_shuffled_labels(good, config.shuffle_labels_seed)
    manifest = DatasetManifest(
        name=config.adapter,
        version=config.version,
        rows=count,
        from_traces=good.filter(expr="source == 'trace'").count(),
        parent=read_manifest(Path(config.parent)).version if config.parent else None,
        sources=sources,
        dropped=_reasons(broken),
        broken=tuple(fault(row) for row in named),
        licence=config.licence,
        generated=config.generated,
    )
    return publish_dataset(good, manifest, Path(config.out))


def _parts(
    config: DatasetConfig, labels: list[dict[str, Any]]
) -> tuple[list[ray.data.Dataset], dict[str, str]]:
    parts: list[ray.data.Dataset] = []
    sources: dict[str, str] = {}
    if config.history:
        path = Path(config.history)
        sources[path.name] = file_digest(path)
        parse_row = functools.partial(from_history, adapter=config.adapter)
        parts.append(read_lines([path]).map(parse_row))
    if config.parent:
        parent = Path(config.parent)
        manifest = read_manifest(parent)
        sources[f"dataset {manifest.name}@{manifest.version}"] = (
            (parent / "STABLE").read_text().strip()
        )
        extra = {key: EMPTY[key] for key in ("file", "line", "fault")}
        blocks = _blocks(manifest.rows)
        rows = ray.data.read_parquet(str(parent / ROWS), override_num_blocks=blocks)
        parts.append(rows.map(lambda row: {**EMPTY, **row, **extra}))
    if config.traces and labels:
        paths = sorted(Path(config.traces).glob("traces-*.jsonl"))
        sources.update({path.name: file_digest(path) for path in paths})
        # One copy of the labels in the object store, not one in every task.
        shared = ray.put({str(label["trace_id"]): label for label in labels})
        parts.append(
            read_lines(paths).flat_map(lambda row: from_trace(row, config.adapter, ray.get(shared)))
        )
    return parts, sources


def _reasons(broken: ray.data.Dataset) -> dict[str, int]:
    """How many rows each reason cost, counted where the rows are."""

    def count(batch: pa.Table) -> pa.Table:
        found = Counter(batch.column("fault").to_pylist())
        return pa.table({"fault": list(found), "count": list(found.values())})

    totals: Counter[str] = Counter()
    for row in broken.map_batches(count, batch_format="pyarrow").take_all():
        totals[row["fault"]] += row["count"]
    return dict(totals)


def _with_shuffled_labels(rows: ray.data.Dataset, seed: int) -> ray.data.Dataset:
    items = rows.take_all()
    completions = [row["completion"] for row in items]
    random.Random(seed).shuffle(completions)
    shuffled = [{**row, "completion": text} for row, text in zip(items, completions, strict=True)]
    return ray.data.from_items(shuffled, override_num_blocks=_blocks(len(shuffled)))


def _blocks(rows: int) -> int:
    """A task for each so many rows: on small sets, processes cost more than the rows."""
    return 1 + rows // _ROWS_A_BLOCK
