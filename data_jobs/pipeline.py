"""The dataset pipeline on Ray Data: read the sources, take the steps, publish one immutable
version."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

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
        DataError: no row survived.
    """
    context = SourceContext(config.adapter, tuple(labels))
    parts, digests = list[ray.data.Dataset](), dict[str, str]()
    for source in config.sources:
        found = source.read(context)
        if found is not None:
            parts.append(found)
            digests |= source.digests()
    if not parts:
        raise DataError("there is nothing to build a dataset from: name sources, or label traces")
    rows = parts[0].union(*parts[1:]).materialize() if len(parts) > 1 else parts[0].materialize()
    good = rows.filter(expr="fault == ''").materialize()
    broken = rows.filter(expr="fault != ''")
    named = broken.select_columns(["file", "line", "fault"]).take(MAX_NAMED_FAULTS)
    count = good.count()
    if count == 0:
        raise DataError(f"no usable row for {config.adapter}; first faults: {named[:3]}")
    for step in config.steps:
        good = step.apply(good)
    manifest = DatasetManifest(
        name=config.adapter,
        version=config.version,
        rows=good.count(),
        from_traces=good.filter(expr="source == 'trace'").count(),
        parent=_parent(config),
        sources=digests,
        dropped=_reasons(broken),
        broken=tuple(fault(row) for row in named),
        licence=config.licence,
        generated=config.generated,
    )
    return publish_dataset(good, manifest, Path(config.out))


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
