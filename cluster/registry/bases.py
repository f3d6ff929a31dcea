"""Base models: what each is, what its licence permits, and which one serves."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.errors import ConflictError, NotFoundError
from cluster.records.model import BaseModelInfo
from cluster.registry import events
from cluster.registry.schema import BaseModel, Version
from cluster.types import VersionState


def serve(tx: Session, info: BaseModelInfo, *, actor: str, now: float) -> list[str]:
    """Make `info` the base that serves; the versions that stood on another are to be refitted.

    Those that are live are retired: on other weights they are not what was evaluated. What stands
    on this base is as good as it was. Returns the labels of the others.
    """
    row = tx.get(BaseModel, info.digest)
    if row is None:
        row = BaseModel(**info.model_dump(), created_at=now, served_at=now)
        tx.add(row)
        tx.flush()
    changed = serving(tx) != info.digest
    row.served_at = now
    marked = []
    others = select(Version).where(Version.base != info.digest, Version.retrain == "")
    for version in tx.scalars(others):
        version.retrain = f"the base model is now {info.name} ({info.digest[:12]})"
        label = f"{version.name}@{version.version}"
        if version.state == VersionState.LIVE:
            reason = {"reason": version.retrain}
            events.note(tx, f"version.{VersionState.RETIRED}", label, reason, actor=actor, now=now)
            version.state = VersionState.RETIRED
        marked.append(label)
    for version in tx.scalars(select(Version).where(Version.base == info.digest)):
        version.retrain = ""
    if changed or marked:
        detail = {"digest": info.digest, "licence": info.licence, "retrain": marked}
        events.note(tx, "base.served", info.name, detail, actor=actor, now=now)
    return marked


def get(tx: Session, digest: str) -> BaseModelInfo:
    """The base with `digest`.

    Raises:
        ConflictError: it is not registered.
    """
    row = tx.get(BaseModel, digest)
    if row is None:
        raise NotFoundError(f"no base model with digest {digest[:12]} is registered")
    return BaseModelInfo(
        name=row.name,
        path=row.path,
        digest=row.digest,
        licence=row.licence,
        permitted_use=row.permitted_use,
    )


def serving(tx: Session) -> str | None:
    """Digest of the base that serves, or None before there is one."""
    return tx.scalars(select(BaseModel.digest).order_by(BaseModel.served_at.desc())).first()


def require_serving(tx: Session, digest: str) -> None:
    """Raise unless the base with `digest` serves.

    Raises:
        ConflictError: another one does, or none.
    """
    now = serving(tx)
    if now != digest:
        raise ConflictError(
            f"fitted on a base model with digest {digest[:12]}, but "
            + (f"{now[:12]} serves: fit it again" if now else "none is registered")
        )
