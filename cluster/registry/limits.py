"""What tenants and keys may use, and what each had used already when its account is opened."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from cluster.errors import NotFoundError
from cluster.records.limits import Limits, Seed, key_scope, tenant_scope
from cluster.registry import events, tenants, usage
from cluster.registry.schema import ApiKey, LimitRow, TokenRow

_RECENT_S = 61.0


def put(tx: Session, scope: str, limits: Limits, *, actor: str, now: float) -> None:
    """Bound `scope` by `limits`, or no longer where they bound nothing.

    Raises:
        NotFoundError: there is no such tenant or key.
    """
    kind, _, name = scope.partition(":")
    if kind == "tenant":
        tenants.require(tx, name)
    elif tx.get(ApiKey, name) is None:
        raise NotFoundError(f"there is no key {name[:64]!r}")
    row = tx.get(LimitRow, scope)
    if not limits.bounded:
        if row is not None:
            tx.delete(row)
    elif row is None:
        tx.add(LimitRow(scope=scope, since=now, **limits.model_dump()))
    else:
        # A budget's periods go on from where they began, unless their length changed.
        row.since = row.since if row.period_s == limits.period_s else now
        row.rpm, row.tpm = limits.rpm, limits.tpm
        row.max_usd, row.period_s = limits.max_usd, limits.period_s
    tx.flush()
    events.note(tx, "limits.set", scope, limits.model_dump(), actor=actor, now=now)


def scopes(tx: Session, tenant: str, key_id: str) -> tuple[str, ...]:
    """The bounded accounts that a key's requests are entered in."""
    both = (tenant_scope(tenant), key_scope(key_id))
    found = tx.scalars(select(LimitRow.scope).where(LimitRow.scope.in_(both)))
    return tuple(sorted(found))


def get(tx: Session, scope: str) -> tuple[Limits, float] | None:
    """The limits of `scope` and since when, or None where it is not bounded."""
    row = tx.get(LimitRow, scope)
    return None if row is None else _bounds(row)


def listed(tx: Session) -> dict[str, tuple[Limits, float]]:
    """Every bounded scope: its limits, and since when."""
    rows = tx.scalars(select(LimitRow).order_by(LimitRow.scope))
    return {row.scope: _bounds(row) for row in rows}


def drop(tx: Session, scope: str) -> None:
    """Forget the limits of a key that has ended."""
    row = tx.get(LimitRow, scope)
    if row is not None:
        tx.delete(row)


def _bounds(row: LimitRow) -> tuple[Limits, float]:
    bounds = Limits(rpm=row.rpm, tpm=row.tpm, max_usd=row.max_usd, period_s=row.period_s)
    return bounds, row.since


def seed(tx: Session, scope: str, limits: Limits, since: float, now: float) -> Seed:
    """What the meter has of `scope`."""
    whose = _rows(scope)
    recent = tx.execute(
        select(TokenRow.at, TokenRow.requests, TokenRow.input_tokens, TokenRow.output_tokens).where(
            whose, TokenRow.at > now - _RECENT_S
        )
    )
    start = _period_start(limits, since, now)
    usd = 0.0
    if limits.max_usd is not None:
        usd = sum(line.usd for line in usage.lines(tx, whose, start, now + 1))
    found = tuple((at, requests, read + written) for at, requests, read, written in recent)
    return Seed(found, usd)


def period_start(tx: Session, scope: str, now: float) -> float:
    """When the present period of a scope's budget began; 0, the beginning, where it has none."""
    found = get(tx, scope)
    if found is None or found[0].max_usd is None:
        return 0.0
    return _period_start(*found, now)


def _period_start(limits: Limits, since: float, now: float) -> float:
    period = limits.period_s
    return since if period is None else since + (now - since) // period * period


def _rows(scope: str) -> ColumnElement[bool]:
    kind, _, name = scope.partition(":")
    return TokenRow.tenant == name if kind == "tenant" else TokenRow.key_id == name
