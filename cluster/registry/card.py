"""The model card of an adapter version: what the registry knows of it, as Markdown for people.

Hugging Face's card format: front matter that tools read, then sections. Everything in it comes from
the registry; what is not known is said to be not known.
"""

from __future__ import annotations

from datetime import UTC, datetime

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.records.adapter import AdapterRecord
from cluster.records.dataset import DatasetManifest
from cluster.records.evaluation import Metric
from cluster.registry import access, versions
from cluster.registry.schema import Adapter, BaseModel, Dataset, Event, Version
from cluster.types import AdapterVersion

_UNKNOWN = "not in the registry"


def write(tx: Session, version: AdapterVersion, *, leaving: bool = False) -> str:
    """The card of `version` as it stands now; of one that is `leaving`, not who else reaches it.

    Raises:
        ConflictError: it is not registered.
    """
    record = versions.get(tx, version)
    row = tx.get_one(Version, record.int_id)
    base = tx.get_one(BaseModel, row.base)
    data = _dataset(tx, row)
    front = {
        "base_model": base.name,
        "library_name": "peft",
        # One that was fitted elsewhere, on nothing that is known here, may have another.
        "license": base.licence if data is not None else "other",
        "tags": ["lora", "headrace"],
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n# {version}",
        _table("Architecture", _architecture(record, row, base)),
        _table("Training", _training(record, row)),
        _table("Data", _data(row, data)),
        _table("Evaluation", _evaluation(record)),
        _table("Deployment", _deployment(tx, record, row, leaving)),
        _table("Licence", _licence(base, data)),
    ]
    return "\n\n".join(sections) + "\n"


def _table(title: str, rows: list[tuple[str, object]]) -> str:
    lines = [f"## {title}", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """A value that cannot leave its cell, whatever is in it."""
    said = " ".join(str(value).split())
    return said.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _architecture(record: AdapterRecord, row: Version, base: BaseModel) -> list[tuple[str, object]]:
    return [
        ("kind", f"LoRA of rank {record.manifest.rank}, in PEFT's format"),
        ("base model", f"{base.name}, sha256 {row.base}"),
        ("weights", f"sha256 {record.digest}"),
        ("proof", f"{len(record.manifest.golden)} golden prompts with log-probabilities"),
    ]


def _training(record: AdapterRecord, row: Version) -> list[tuple[str, object]]:
    recipe = record.manifest.recipe
    return [
        ("run", f"{row.run_id}, {record.manifest.seconds:.0f} s of training"),
        ("replaces", row.parent or "no earlier version"),
        *(recipe.items() if recipe else [("recipe", _UNKNOWN)]),
    ]


def _licence(base: BaseModel, data: DatasetManifest | None) -> list[tuple[str, object]]:
    return [
        ("base model", base.licence),
        ("permitted use", base.permitted_use),
        ("training data", data.licence if data else _UNKNOWN),
    ]


def _dataset(tx: Session, row: Version) -> DatasetManifest | None:
    """The manifest of what a version was fitted on, where the registry has it."""
    # Not by its name: what was imported may have been fitted on another of that name.
    mine = select(Dataset).where(Dataset.digest == row.dataset_digest)
    for found in tx.scalars(mine):
        if f"{found.name}@{found.version}" == row.dataset:
            return DatasetManifest.model_validate(found.manifest)
    return None


def _data(row: Version, manifest: DatasetManifest | None) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("dataset", f"{row.dataset}, sha256 {row.dataset_digest}")]
    if manifest is None:
        return [*rows, ("contents", _UNKNOWN)]
    name = manifest.name
    origin = "written by a generator of ours" if manifest.generated else "of people"
    return [
        *rows,
        ("rows", f"{manifest.rows}, {manifest.from_traces} of them labelled production traces"),
        ("texts", origin),
        ("extends", f"{name}@{manifest.parent}" if manifest.parent else "nothing"),
        ("left out", ", ".join(f"{n} {why}" for why, n in manifest.dropped.items()) or "nothing"),
        ("sources", ", ".join(sorted(manifest.sources)) or _UNKNOWN),
    ]


def _evaluation(record: AdapterRecord) -> list[tuple[str, object]]:
    found = record.manifest.evaluation
    rows = [(name, _metric(metric, found.previous)) for name, metric in found.named()]
    return [*rows, ("gate", record.reason or "not judged yet")]


def _metric(metric: Metric, previous: str | None) -> str:
    parts = [f"{metric.value:.4f} on {metric.rows} rows"]
    if metric.base is not None:
        parts.append(f"base model alone {metric.base:.4f}")
    if metric.previous is not None:
        parts.append(f"{previous} {metric.previous:.4f}")
    if metric.wins is not None and metric.losses is not None:
        parts.append(f"{metric.wins} rows won, {metric.losses} lost")
    return "; ".join(parts)


def _deployment(
    tx: Session, record: AdapterRecord, row: Version, leaving: bool
) -> list[tuple[str, object]]:
    adapter = tx.get_one(Adapter, record.id.name)
    reached = [one for one in access.grantees(tx, record.id.name) if one != adapter.owner]
    moves = tx.scalars(select(Event).where(Event.subject == str(record.id)).order_by(Event.id))
    state = "switched off" if adapter.killed_at is not None else str(record.state)
    return [
        ("state", state),
        ("owner", adapter.owner),
        *([] if leaving else [("granted to", ", ".join(reached) or "no tenant")]),
        ("refit", record.retrain or "not needed"),
        ("history", "; ".join(f"{_at(event.at)} {event.kind}" for event in moves) or _UNKNOWN),
    ]


def _at(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
