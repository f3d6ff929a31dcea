"""Tenants and the principals who act for them."""

from __future__ import annotations

import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.errors import NotFoundError, UserError
from cluster.registry import events
from cluster.registry.schema import PrincipalRow, Tenant
from cluster.types import checked_name


def ensure(tx: Session, name: str, *, actor: str, now: float) -> None:
    """Enter tenant `name` unless it is there.

    Raises:
        UserError: the name is not one.
    """
    try:
        checked_name(name)
    except ValueError as error:
        raise UserError(f"the tenant: {error}") from error
    if tx.get(Tenant, name) is None:
        tx.add(Tenant(name=name, created_at=now, suspended_at=None))
        tx.flush()
        events.note(tx, "tenant.created", name, {}, actor=actor, now=now)


def require(tx: Session, name: str) -> Tenant:
    """The tenant called `name`.

    Raises:
        NotFoundError: there is none.
    """
    row = tx.get(Tenant, name)
    if row is None:
        raise NotFoundError(f"there is no tenant {name[:64]!r}")
    return row


def suspend(tx: Session, name: str, *, suspended: bool, actor: str, now: float) -> None:
    """Let none of a tenant's keys through, or let them through again."""
    require(tx, name).suspended_at = now if suspended else None
    kind = "tenant.suspended" if suspended else "tenant.resumed"
    events.note(tx, kind, name, {}, actor=actor, now=now)


def principal(tx: Session, tenant: str, name: str, now: float) -> str:
    """The id of a tenant's principal, who is entered where it is new."""
    wanted = (PrincipalRow.tenant == tenant, PrincipalRow.name == checked_name(name))
    row = tx.scalars(select(PrincipalRow).where(*wanted)).first()
    if row is None:
        row = PrincipalRow(
            principal_id=secrets.token_hex(8), tenant=tenant, name=name, created_at=now
        )
        tx.add(row)
        tx.flush()
    return row.principal_id
