"""The dataset pipeline on Ray Data: read the sources, take the steps, publish one immutable
version."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from cluster.dataset import read_manifest
from cluster.errors import DataError
from cluster.records.dataset import MAX_NAMED_FAULTS, DatasetManifest
from cluster.records.labels import Label
from data_jobs.config import DatasetConfig
from data_jobs.manifest import fault, publish_dataset
from data_jobs.sources.base import SourceContext
from data_jobs.sources.parent import ParentSource


def build_dataset(config: DatasetConfig, labels: list[Label]) -> Path:
    """Build and publish the version that `config` describes; returns its path.

    Raises:
        DataError: no row is left, two sources have files of one name, or a step lost rows.
    """
    read, digests = _read(config, labels)
    good, broken = _split(read)
    faults = [broken]
    for step in config.steps:
        before = _require_rows(good, faults, config.adapter)
        after = step.apply(good).materialize()
        if after.count() < before:
            raise DataError(f"the step {step.type} lost rows instead of giving them a fault")
        good, broken = _split(after)
        faults.append(broken)
    count = _require_rows(good, faults, config.adapter)
    broken, named = _all(faults), _named(faults)
    manifest = DatasetManifest(
        name=config.adapter,
        version=config.version,
        rows=count,
        from_traces=good.filter(expr="source == 'trace'").count(),
        parent=_parent(config),
        sources=digests,
        dropped=_reasons(broken),
        broken=tuple(fault(row) for row in named),
        licence=config.licence,
        generated=config.generated,
    )
    return publish_dataset(good, manifest, Path(config.out))


def _read(config: DatasetConfig, labels: list[Label]) -> tuple[ray.data.Dataset, dict[str, str]]:
    """The rows of every source, and the digests of what they were read from."""
    context = SourceContext(config.adapter, tuple(labels))
    parts, digests = list[ray.data.Dataset](), dict[str, str]()
    for source in config.sources:
        rows = source.read(context)
        if rows is None:
            continue
        found = source.digests()
        if twice := sorted(digests.keys() & found.keys()):
            raise DataError(f"two sources have {twice[0]}: the manifest could not tell them apart")
        parts.append(rows)
        digests |= found
    if not parts:
        raise DataError("there is nothing to build a dataset from: name sources, or label traces")
    return _all(parts).materialize(), digests


def _all(parts: list[ray.data.Dataset]) -> ray.data.Dataset:
    return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]


def _split(rows: ray.data.Dataset) -> tuple[ray.data.Dataset, ray.data.Dataset]:
    """The rows without a fault, and those with one."""
    good = rows.filter(expr="fault == ''").materialize()
    return good, rows.filter(expr="fault != ''").materialize()


def _named(faults: list[ray.data.Dataset]) -> list[dict[str, Any]]:
    rows = _all(faults).select_columns(["file", "line", "fault"])
    found: list[dict[str, Any]] = rows.take(MAX_NAMED_FAULTS)
    return found


def _require_rows(good: ray.data.Dataset, faults: list[ray.data.Dataset], adapter: str) -> int:
    count: int = good.count()
    if count == 0:
        raise DataError(f"no usable row for {adapter}; first faults: {_named(faults)[:3]}")
    return count


def _parent(config: DatasetConfig) -> int | None:
    """The version that this one extends, if it extends one."""
    parents = [source for source in config.sources if isinstance(source, ParentSource)]
    return read_manifest(Path(parents[0].path)).version if parents else None


def _reasons(broken: ray.data.Dataset) -> dict[str, int]:
    """How many rows each reason cost, counted where the rows are."""

    def count(batch: pa.Table) -> pa.Table:
        found = Counter(batch.column("fault").to_pylist())
        return pa.table({"fault": list(found), "count": list(found.values())})

    totals: Counter[str] = Counter()
    for row in broken.map_batches(count, batch_format="pyarrow").take_all():
        totals[row["fault"]] += row["count"]
    return dict(totals)
