"""Metering: what each tenant used, append-only, and the bill made of it.

Token usage is reported by ranges of the audit log: a row says what one tenant's key used of one
version between two places of one writer's chain. A range that is reported twice counts once, and
one that was never reported is found by reading the log, so that bill and log agree to the token.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from cluster.audit import Piece, Place, read_pieces, writers
from cluster.budget.metering import UsageBatch
from cluster.budget.prices import PriceBook
from cluster.errors import DataError
from cluster.records.trace import MeteredTrace, decode_metered
from cluster.records.usage import MeteredUsage
from cluster.registry import events, live_hours
from cluster.registry import writers as log_writers
from cluster.registry.schema import Label, PriceRow, TokenRow, WorkRow

logger = logging.getLogger(__name__)


def insert(tx: Session, uses: Iterable[MeteredUsage]) -> int:
    """Enter what was used; returns how many rows were new. Writers that are not registered are left
    out.

    A range that overlaps a stored one is left out as a whole: it was reported before, or the log
    was read in between, and reading the log again finds what is missing.
    """
    ranges: dict[tuple[str, int, int], list[MeteredUsage]] = {}
    for use in uses:
        ranges.setdefault((use.writer, use.first, use.after), []).append(use)
    known = log_writers.known(tx, (writer for writer, _, _ in ranges))
    new = 0
    for (writer, first, after), rows in ranges.items():
        if writer not in known:
            logger.error("%r is not a registered writer: its usage is on no bill", writer[:128])
            continue
        overlaps = (TokenRow.writer == writer, TokenRow.first < after, TokenRow.after > first)
        if tx.scalars(select(TokenRow.first).where(*overlaps).limit(1)).first() is None:
            tx.add_all(TokenRow(**asdict(use)) for use in rows)
            tx.flush()
            new += len(rows)
    return new


def work(tx: Session, kind: str, reference: str, *, tenant: str, amount: float, at: float) -> None:
    """Enter `amount` of another kind of work, such as seconds of training; once a reference."""
    if tx.get(WorkRow, (kind, reference)) is None:
        tx.add(WorkRow(kind=kind, reference=reference, tenant=tenant, amount=amount, at=at))
        tx.flush()


#: Longest time that one row may cover, in seconds.
_RANGE_S = 3600.0
#: Attempts to insert what was read from the log, while gateways report it too.
_TRIES = 3
TRAINING, LABELS = "training_seconds", "labels"


def set_prices(tx: Session, book: PriceBook, *, actor: str, now: float) -> None:
    """Put `book` in force; what was used before keeps the price it had."""
    tx.add(PriceRow(at=now, book=book.model_dump(mode="json")))
    events.note(tx, "prices.set", "price book", book.model_dump(mode="json"), actor=actor, now=now)


def books(tx: Session) -> list[tuple[float, PriceBook]]:
    """Every price book and when it came into force, oldest first; all is free before the first."""
    rows = tx.scalars(select(PriceRow).order_by(PriceRow.at, PriceRow.id))
    return [(0.0, PriceBook()), *((row.at, PriceBook.model_validate(row.book)) for row in rows)]


@dataclass
class Line:
    """What was used of one version, and what it costs in US dollars."""

    version: str
    requests: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0


def lines(
    tx: Session,
    whose: ColumnElement[bool],
    start: float,
    end: float,
    prices: PriceBook | None = None,
) -> list[Line]:
    """Tokens used from `start` until before `end`, at the prices then in force or at `prices`."""
    found: dict[str, Line] = {}
    for since, until, book in _slices(tx, start, end, prices):
        sums = (TokenRow.requests, TokenRow.cached, TokenRow.input_tokens, TokenRow.output_tokens)
        rows = tx.execute(
            select(TokenRow.version, *(func.sum(column) for column in sums))
            .where(whose, TokenRow.at >= since, TokenRow.at < until)
            .group_by(TokenRow.version)
        )
        for version, *counts in rows:
            requests, cached, read, written = map(int, counts)
            line = found.setdefault(version, Line(version))
            line.requests += requests
            line.cached += cached
            line.input_tokens += read
            line.output_tokens += written
            line.usd += book.tokens(version).cost(read, written)
    return sorted(found.values(), key=lambda line: line.version)


def spent(tx: Session, key_id: str, start: float, end: float) -> float:
    """US dollars for the tokens that one key used from `start` until before `end`."""
    return sum(line.usd for line in lines(tx, TokenRow.key_id == key_id, start, end))


def _slices(
    tx: Session, start: float, end: float, prices: PriceBook | None
) -> Iterator[tuple[float, float, PriceBook]]:
    """The time from `start` to `end`, cut where the price book changed."""
    known = [(0.0, prices)] if prices is not None else books(tx)
    ends = [at for at, _ in known[1:]] + [float("inf")]
    for (since, book), until in zip(known, ends, strict=True):
        if since < end and until > start:
            yield max(since, start), min(until, end), book


def bill(
    tx: Session,
    tenant: str,
    start: float,
    end: float,
    prices: PriceBook | None = None,
    *,
    adapters: Sequence[str] = (),
) -> dict[str, Any]:
    """What `tenant` used from `start` until before `end`, line by line, and what it costs.

    With `prices`, as if that book had been in force throughout; with `adapters`, of those alone.
    """
    used = [
        line
        for line in lines(tx, TokenRow.tenant == tenant, start, end, prices)
        if not adapters or line.version.partition("@")[0] in adapters
    ]
    trained = labelled = hours = extra = 0.0
    for since, until, book in _slices(tx, start, end, prices):
        seconds = _amount(tx, TRAINING, tenant, since, until, adapters=adapters)
        labels = _amount(tx, LABELS, tenant, since, until, adapters=adapters)
        live = live_hours.seconds(tx, tenant, since, until, adapters) / 3600
        trained, labelled, hours = trained + seconds, labelled + labels, hours + live
        extra += seconds / 3600 * book.training_hour + labels * book.label
        extra += live * book.adapter_hour
    return {
        "tenant": tenant,
        "from": start,
        "until": end,
        "lines": [{**vars(line), "usd": round(line.usd, 6)} for line in used],
        "training_seconds": round(trained, 1),
        "labels": int(labelled),
        "adapter_hours": round(hours, 4),
        "usd": round(sum(line.usd for line in used) + extra, 6),
    }


def _amount(
    tx: Session, kind: str, tenant: str, start: float, end: float, *, adapters: Sequence[str]
) -> float:
    mine = (WorkRow.kind == kind, WorkRow.tenant == tenant, WorkRow.at >= start, WorkRow.at < end)
    wanted = select(func.sum(WorkRow.amount)).where(*mine)
    if adapters and kind == LABELS:
        wanted = wanted.join(Label, Label.trace_id == WorkRow.reference)
        wanted = wanted.where(Label.adapter.in_(adapters))
    elif adapters:
        versions = (WorkRow.reference.startswith(f"{n}@", autoescape=True) for n in adapters)
        wanted = wanted.where(or_(*versions))
    return float(tx.scalar(wanted) or 0.0)


def reconcile(
    begin: Callable[[], AbstractContextManager[Session]], audit: Path, read: dict[str, Place]
) -> None:
    """Enter what the log has and the meter does not: ranges whose report was lost.

    `read` is how far each writer's chain was read before, and is moved on. `begin` opens
    transactions, short ones: others wait to write.
    """
    found = writers(audit)
    with begin() as tx:
        known = log_writers.known(tx, found)
    for writer in found:
        if writer not in known:
            logger.error("%r is not a registered writer: its log is on no bill", writer[:128])
            continue
        for piece in read_pieces(audit, writer, read.get(writer, Place())):
            if not _entered(begin, piece):
                logger.warning("a part of the log of %s is being reported meanwhile", writer)
                break  # the next bill reads it again
            read[writer] = piece.after


def _entered(begin: Callable[[], AbstractContextManager[Session]], piece: Piece) -> bool:
    for _ in range(_TRIES):
        with begin() as tx:
            found = find_missing(tx, piece)
        # A second transaction: SQLite refuses a write after a read of what has changed since.
        with begin() as tx:
            if insert(tx, found) == len(found):
                return True
        # A gateway reported some of it meanwhile, and the ranges that overlap were left out.
    return False


def find_missing(tx: Session, piece: Piece) -> list[MeteredUsage]:
    """What is in a piece of the log and not in the meter.

    Each is dated when it was recorded, and cut where the price book changed.
    """
    changes = [at for at, _ in books(tx)[1:]]
    start, end = piece.first.traces, piece.after.traces
    near = (TokenRow.writer == piece.writer, TokenRow.first < end, TokenRow.after > start)
    stored = select(TokenRow.first, TokenRow.after).where(*near).distinct()
    ranges = deque(sorted((int(first), int(after)) for first, after in tx.execute(stored)))
    found: list[MeteredUsage] = []
    batch: UsageBatch | None = None
    for place, line in enumerate(piece.lines, start):
        while ranges and ranges[0][1] <= place:
            ranges.popleft()
        covered = bool(ranges) and ranges[0][0] <= place
        trace = None if covered else _read(piece.writer, place, line)
        missing = trace is not None and trace.usage is not None
        if batch is not None and (
            trace is None or not missing or _apart(batch.since, trace.recorded_at, changes)
        ):
            found += batch.rows()
            batch = None
        if trace is not None and missing:
            if batch is None:
                batch = UsageBatch(piece.writer, place)
            batch.add(trace)
    if batch is not None:
        found += batch.rows()
    return found


def _read(writer: str, place: int, line: bytes) -> MeteredTrace:
    """One line of the log.

    Raises:
        RuntimeError: it is no trace. The tenant who asks for a bill cannot help it.
    """
    try:
        return decode_metered(line)
    except DataError as error:
        raise RuntimeError(f"line {place + 1} of traces-{writer}.jsonl is no trace") from error


def _apart(first: float, at: float, changes: list[float]) -> bool:
    """Whether two moments are too far apart to be one entry: by the hour, or by their prices."""
    return at - first > _RANGE_S or any(first < change <= at for change in changes)
