"""How long a tenant's adapters were live, as the events of the registry tell."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.registry.schema import Adapter, Event
from cluster.types import VersionState

_BEGINS = frozenset({f"version.{VersionState.LIVE}", "adapter.revived"})
_ENDS = frozenset({f"version.{VersionState.RETIRED}", "adapter.killed"})


def seconds(
    tx: Session, tenant: str, start: float, end: float, adapters: Sequence[str] = ()
) -> float:
    """Seconds from `start` to `end` that adapters of `tenant` were live, added up over them or over
    those of `adapters`."""
    mine = select(Adapter.name).where(Adapter.owner == tenant)
    if adapters:
        mine = mine.where(Adapter.name.in_(adapters))
    return sum(_live(tx, name, start, end) for name in tx.scalars(mine))


def _live(tx: Session, name: str, start: float, end: float) -> float:
    """An adapter is live while a version of it is and it is not switched off."""
    found = tx.execute(
        select(Event.at, Event.kind, Event.subject)
        .where(Event.kind.in_(_BEGINS | _ENDS), Event.at < end)
        .where((Event.subject == name) | Event.subject.startswith(f"{name}@", autoescape=True))
        .order_by(Event.id)
    ).all()
    total, current, killed, since = 0.0, None, False, 0.0
    for at, kind, subject in [*found, (end, "", "")]:
        if current is not None and not killed:
            total += max(0.0, at - max(since, start))
        since = at
        if subject == name:
            killed = kind == "adapter.killed"
        elif kind in _BEGINS:
            current = subject
        elif subject == current:
            current = None
    return total
