"""The writers of the audit log and how far each has come, so that the log alone is not believed.

A chain shows that what is there was not altered. That nothing is missing and nothing was added is
known only where the log was not written: here. Owns no file; `cluster.audit.verify` compares.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from cluster.audit import Head
from cluster.errors import ConflictError
from cluster.registry.db import reading
from cluster.registry.schema import WriterRow


def register(tx: Session, writer: str, *, changes: bool, now: float) -> None:
    """Enter a writer before it writes; `changes` is whether it records what the control plane does.

    Entering it twice is entering it once.
    """
    if tx.get(WriterRow, writer) is None:
        tx.add(WriterRow(writer=writer, changes=changes, entries=0, head="", updated_at=now))
        tx.flush()


def advance(tx: Session, writer: str, head: Head, *, now: float) -> None:
    """Note the latest entry of a registered writer; an older one than is known changes nothing.

    Raises:
        ConflictError: the writer is not registered.
    """
    row = tx.get(WriterRow, writer)
    if row is None:
        raise ConflictError(f"{writer[:128]!r} is not a registered writer of the audit log")
    if head.entries > row.entries:
        row.entries, row.head, row.updated_at = head.entries, head.hash, now


def known(tx: Session, asked: Iterable[str]) -> frozenset[str]:
    """Those of `asked` that are registered."""
    return frozenset(tx.scalars(select(WriterRow.writer).where(WriterRow.writer.in_(set(asked)))))


def heads(tx: Session, *, changes: bool) -> dict[str, Head]:
    """The latest known entry of each writer of requests, or of changes."""
    rows = tx.scalars(select(WriterRow).where(WriterRow.changes == changes))
    return {row.writer: Head(row.entries, row.head) for row in rows}


def read_heads(database: str) -> tuple[dict[str, Head], dict[str, Head]]:
    """The heads of requests and of changes in the registry at `database`, which is only read.

    Raises:
        ConfigError: `database` is no registry's URL.
        ConflictError: it holds no list of writers.
    """
    engine = reading(database)
    try:
        if WriterRow.__tablename__ not in inspect(engine).get_table_names():
            raise ConflictError(
                "this registry has no list of the log's writers: serve from it once"
            )
        with Session(engine) as tx:
            return heads(tx, changes=False), heads(tx, changes=True)
    finally:
        engine.dispose()
