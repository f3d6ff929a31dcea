"""Assembles a bundle: all of it is in place, proved and sealed before it gets its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster import adapters, storage
from cluster.bundle import contents, signing
from cluster.bundle.contents import BundleManifest, Lineage
from cluster.errors import ArtifactError
from cluster.records.adapter import AdapterRecord
from cluster.records.model import BaseModelInfo

_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "README.md")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """What the registry has of a version."""

    record: AdapterRecord
    base: BaseModelInfo
    card: str


def export(source: Source, out: Path, key: signing.PrivateKey, dtype: str, say: Say) -> Path:
    """Write the bundle to `out` and return it. `say` receives a line for each step.

    Raises:
        ConflictError: `out` is there already.
        DiskFullError: there is no room for it.
        ArtifactError: adapter or base are not what was registered, or the merged model is not
            what the trainer proved.
    """
    record, base = source.record, Path(source.base.path)
    say(f"checking {record.id} and its base model {source.base.name}")
    if storage.require_stable(Path(record.path)) != record.digest:
        raise ArtifactError(f"{record.path} is not the directory that was registered")
    if not base.is_dir() or storage.tree_digest(base) != source.base.digest:
        raise ArtifactError(f"{base} is not the base model that {record.id} was fitted on")
    with storage.staged_for(out) as staged:
        _fill(staged, source, dtype, say)
        say("sealing")
        contents.seal(staged, key)
        storage.publish_sealed(staged, out)
    return out


def _fill(staged: Path, source: Source, dtype: str, say: Say) -> None:
    record, base = source.record, Path(source.base.path)
    say("copying the adapter")
    _copy_adapter(Path(record.path), staged / contents.ADAPTER)
    (staged / contents.CARD).write_text(source.card, encoding="utf-8")
    _copy_licences(base, staged / contents.LICENCES)
    # Seconds to import, and only here.
    from cluster.bundle import merge

    say(f"merging in {dtype}")
    merged = merge.merge(base, Path(record.path), staged / contents.MERGED, dtype)
    merge.save_tokenizer(base, staged / contents.MERGED, staged / contents.TOKENIZER)
    say(f"proving the merged model on {len(record.manifest.golden)} golden prompts")
    difference = merge.difference(merged, record.manifest.golden)
    if not difference <= adapters.MAX_DIFFERENCE:
        raise ArtifactError(
            f"the merged model is {difference:.3f} nats a token away from {record.id}'s trainer "
            f"(at most {adapters.MAX_DIFFERENCE}): merge with --dtype float32"
        )
    manifest = BundleManifest(
        format=contents.FORMAT,
        version=str(record.id),
        adapter_digest=record.digest,
        lineage=Lineage(
            parent=record.manifest.evaluation.previous,
            dataset=record.manifest.dataset,
            dataset_digest=record.manifest.dataset_digest,
            run_id=record.manifest.run_id,
            base_model=source.base.name,
            base_digest=source.base.digest,
        ),
        licence=source.base.licence,
        permitted_use=source.base.permitted_use,
        merged_dtype=dtype,
        proof_difference=difference,
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    path = staged / contents.MANIFEST
    path.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _copy_adapter(source: Path, target: Path) -> None:
    target.mkdir()
    for name in (adapters.WEIGHTS, adapters.PEFT_CONFIG, adapters.MANIFEST):
        shutil.copy(source / name, target / name)


def _copy_licences(base: Path, target: Path) -> None:
    target.mkdir()
    for pattern in _LICENCE_FILES:
        for path in base.glob(pattern):
            if path.is_file() and not path.is_symlink():
                shutil.copy(path, target / f"{base.name}-{path.name}")
