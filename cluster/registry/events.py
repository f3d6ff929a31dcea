"""Events: what was changed, and by whom. A row here and an entry in the audit chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from cluster.audit import ChainWriter
from cluster.registry import writers
from cluster.registry.schema import Event

_NOTED = "headrace.events"


def note(
    tx: Session, kind: str, subject: str, detail: dict[str, Any], *, actor: str, now: float
) -> None:
    """Record that `actor` did `kind` to `subject`."""
    event = Event(at=now, kind=kind, subject=subject[:128], actor=actor[:128], detail=detail)
    tx.add(event)
    tx.info.setdefault(_NOTED, []).append(event)


@contextmanager
def recorded(engine: Engine, chain: ChainWriter) -> Iterator[Session]:
    """A transaction whose events are in the audit chain before it takes effect.

    A crash between the two leaves an entry for what did not come to pass, never the reverse.
    """
    with Session(engine) as tx, tx.begin():
        yield tx
        tx.flush()
        if events := tx.info.pop(_NOTED, []):
            chain.append([_entry(event) for event in events])
            writers.advance(tx, chain.writer, chain.head, now=events[-1].at)


def _entry(event: Event) -> dict[str, Any]:
    return {
        "trace_id": f"ev-{event.id}",
        "recorded_at": event.at,
        "kind": event.kind,
        "subject": event.subject,
        "actor": event.actor,
        "detail": event.detail,
    }


def listed(tx: Session, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` events, newest first."""
    rows = tx.scalars(select(Event).order_by(Event.id.desc()).limit(limit))
    return [_entry(row) for row in rows]
