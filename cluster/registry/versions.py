"""Adapter versions and dataset versions: registered once, moved between states, listed."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from cluster.errors import ConflictError, NotFoundError
from cluster.records.adapter import AdapterManifest, AdapterRecord
from cluster.records.dataset import DatasetManifest
from cluster.registry import access, bases, events
from cluster.registry.schema import Dataset, Version
from cluster.types import AdapterVersion, VersionState


def _record(row: Version) -> AdapterRecord:
    return AdapterRecord(
        AdapterVersion(row.name, row.version),
        row.int_id,
        VersionState(row.state),
        row.path,
        row.digest,
        row.reason,
        row.retrain,
        AdapterManifest.model_validate(row.manifest),
    )


def register(
    tx: Session,
    manifest: AdapterManifest,
    path: Path,
    digest: str,
    *,
    owner: str,
    actor: str,
    now: float,
) -> None:
    """Enter a published version of `owner`'s adapter as a candidate.

    Raises:
        ConflictError: that version is already registered, the adapter is another tenant's, or it
            was fitted on another base model than the one that serves.
    """
    if _find(tx, manifest.id) is not None:
        raise ConflictError(f"{manifest.id} is already registered; versions are immutable")
    bases.require_serving(tx, manifest.base_digest)
    access.claim(tx, manifest.name, owner, actor=actor, now=now)
    tx.add(
        Version(
            name=manifest.name,
            version=manifest.version,
            state=VersionState.CANDIDATE,
            path=str(path),
            digest=digest,
            base=manifest.base_digest,
            parent=manifest.evaluation.previous,
            dataset=manifest.dataset,
            dataset_digest=manifest.dataset_digest,
            run_id=manifest.run_id,
            reason="",
            retrain="",
            manifest=manifest.model_dump(mode="json"),
            created_at=now,
        )
    )
    detail = {"digest": digest, "dataset": manifest.dataset, "run": manifest.run_id}
    events.note(tx, "version.registered", str(manifest.id), detail, actor=actor, now=now)


def _find(tx: Session, version: AdapterVersion) -> Version | None:
    return tx.scalars(
        select(Version).where(Version.name == version.name, Version.version == version.version)
    ).first()


def get(tx: Session, version: AdapterVersion) -> AdapterRecord:
    """The record of `version`.

    Raises:
        NotFoundError: it is not registered.
    """
    row = _find(tx, version)
    if row is None:
        raise NotFoundError(f"{version} is not registered")
    return _record(row)


def set_state(
    tx: Session,
    version: AdapterVersion,
    state: VersionState,
    reason: str,
    *,
    actor: str,
    now: float,
) -> None:
    """Move `version` to `state` and note it as an event; the gate's reason stays on record."""
    change: dict[str, str] = {"state": state}
    if state in (VersionState.PASSED, VersionState.REJECTED):
        change["reason"] = reason
    # Not by its row, which would be read with all of its golden probes.
    moved = tx.execute(
        update(Version)
        .where(Version.name == version.name, Version.version == version.version)
        .values(change)
        .returning(Version.int_id)
        .execution_options(synchronize_session=False)
    )
    if moved.first() is None:
        raise NotFoundError(f"{version} is not registered")
    events.note(tx, f"version.{state}", str(version), {"reason": reason}, actor=actor, now=now)


def listed(tx: Session) -> list[AdapterRecord]:
    """Every version, by name and number."""
    rows = tx.scalars(select(Version).order_by(Version.name, Version.version))
    return [_record(row) for row in rows]


def live_ids(tx: Session) -> dict[str, AdapterVersion]:
    """The live version of each adapter that has one, without what is known of it."""
    query = select(Version.name, Version.version).where(Version.state == VersionState.LIVE)
    return {name: AdapterVersion(name, number) for name, number in tx.execute(query)}


def next_version(tx: Session, name: str) -> int:
    """The number the next version of `name` gets."""
    last = tx.scalar(select(func.max(Version.version)).where(Version.name == name))
    return (last or 0) + 1


def register_dataset(
    tx: Session, manifest: DatasetManifest, path: Path, digest: str, now: float
) -> None:
    """Enter a published dataset version.

    Raises:
        ConflictError: that version is already registered.
    """
    if tx.get(Dataset, (manifest.name, manifest.version)) is not None:
        raise ConflictError(f"dataset {manifest.name}@{manifest.version} is already registered")
    tx.add(
        Dataset(
            name=manifest.name,
            version=manifest.version,
            path=str(path),
            digest=digest,
            manifest=manifest.model_dump(mode="json"),
            created_at=now,
        )
    )


def datasets(tx: Session) -> list[DatasetManifest]:
    """Every dataset version, by name and number."""
    rows = tx.scalars(select(Dataset).order_by(Dataset.name, Dataset.version))
    return [DatasetManifest.model_validate(row.manifest) for row in rows]
