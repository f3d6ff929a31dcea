"""Base models: what each is, what its licence permits, and which one serves."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.config import ConfigModel
from cluster.errors import ConflictError, DataError
from cluster.registry import events
from cluster.registry.schema import BaseModel, Version
from cluster.storage import tree_digest
from cluster.types import VersionState

_UNSTATED = "not stated"
_MAX_CARD = 1 << 20


class BaseModelInfo(ConfigModel):
    """A base model as its directory tells."""

    name: str = Field(max_length=128)
    path: str
    digest: str = Field(pattern="[0-9a-f]{64}")
    licence: str = Field(default=_UNSTATED, max_length=64)
    permitted_use: str = Field(default=_UNSTATED, max_length=2000)


def describe(path: Path) -> BaseModelInfo:
    """The model in `path`; licence and permitted use as its card's front matter states them.

    Raises:
        DataError: there is no such directory, or its card cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not the directory of a base model")
    card = path / "README.md"
    stated = _front_matter(card) if card.is_file() else {}
    return BaseModelInfo(
        name=path.name,
        path=str(path),
        digest=tree_digest(path),
        licence=str(stated.get("license", _UNSTATED))[:64],
        permitted_use=str(stated.get("permitted_use", _UNSTATED))[:2000],
    )


def _front_matter(card: Path) -> dict[str, object]:
    if card.stat().st_size > _MAX_CARD:
        raise DataError(f"{card} is over {_MAX_CARD} bytes: not a model card")
    opening, mark, rest = card.read_text(encoding="utf-8").partition("---\n")
    head, mark, _ = rest.partition("\n---") if mark and not opening else ("", "", "")
    if not mark:
        return {}
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise DataError(f"the front matter of {card} is not YAML: {error}") from error
    return found if isinstance(found, dict) else {}


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
        raise ConflictError(f"no base model with digest {digest[:12]} is registered")
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
