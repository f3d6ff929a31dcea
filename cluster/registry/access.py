"""Whose an adapter is, who else reaches it, and whether it is switched off."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.errors import ConflictError, NotFoundError
from cluster.registry import events, tenants
from cluster.registry.schema import Adapter, Grant
from cluster.types import EVERYONE, checked_name


def claim(tx: Session, name: str, owner: str, *, actor: str, now: float) -> None:
    """Give a new adapter to `owner`, who is entered as a tenant where new.

    Raises:
        ConflictError: the adapter is another tenant's.
    """
    row = tx.get(Adapter, checked_name(name))
    if row is None:
        tenants.ensure(tx, owner, actor=actor, now=now)
        tx.add(Adapter(name=name, owner=owner, created_at=now, killed_at=None, kill_reason=""))
        tx.flush()
        events.note(tx, "adapter.created", name, {"owner": owner}, actor=actor, now=now)
    elif row.owner != owner:
        raise ConflictError(f"adapter {name!r} belongs to another tenant: choose another name")


def require(tx: Session, name: str) -> Adapter:
    """The adapter called `name`.

    Raises:
        NotFoundError: there is none.
    """
    row = tx.get(Adapter, name)
    if row is None:
        raise NotFoundError(f"there is no adapter {name[:64]!r}")
    return row


def owners(tx: Session) -> dict[str, str]:
    """The tenant that each adapter belongs to."""
    return {row.name: row.owner for row in tx.execute(select(Adapter.name, Adapter.owner))}


def grant(tx: Session, name: str, tenant: str, *, actor: str, now: float) -> None:
    """Let `tenant` reach the adapter; `*` lets everyone.

    Raises:
        NotFoundError: there is no such adapter or tenant.
    """
    require(tx, name)
    if tenant != EVERYONE:
        tenants.require(tx, tenant)
    if tx.get(Grant, (name, tenant)) is None:
        tx.add(Grant(adapter=name, tenant=tenant, granted_at=now))
        events.note(tx, "adapter.granted", name, {"tenant": tenant}, actor=actor, now=now)


def withdraw(tx: Session, name: str, tenant: str, *, actor: str, now: float) -> None:
    """Take a grant back; nothing happens where there is none."""
    row = tx.get(Grant, (name, tenant))
    if row is not None:
        tx.delete(row)
        events.note(tx, "adapter.withdrawn", name, {"tenant": tenant}, actor=actor, now=now)


def access(tx: Session, owners: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The tenants that reach each adapter, its owner of `owners` and those it was granted to."""
    found = {name: {owner} for name, owner in owners.items()}
    for name, tenant in tx.execute(select(Grant.adapter, Grant.tenant)):
        found[name].add(tenant)
    return {name: frozenset(tenants) for name, tenants in found.items()}


def grantees(tx: Session, name: str) -> list[str]:
    """The tenants that the adapter was granted to, in order."""
    return sorted(tx.scalars(select(Grant.tenant).where(Grant.adapter == name)))


def kill(tx: Session, name: str, reason: str, *, actor: str, now: float) -> None:
    """Switch an adapter off; it stays off until it is revived."""
    row = require(tx, name)
    row.killed_at, row.kill_reason = now, reason
    events.note(tx, "adapter.killed", name, {"reason": reason}, actor=actor, now=now)


def revive(tx: Session, name: str, *, actor: str, now: float) -> None:
    """Let a killed adapter serve again.

    Raises:
        ConflictError: it is not killed.
    """
    row = require(tx, name)
    if row.killed_at is None:
        raise ConflictError(f"adapter {name!r} is not killed")
    row.killed_at, row.kill_reason = None, ""
    events.note(tx, "adapter.revived", name, {}, actor=actor, now=now)


def killed(tx: Session) -> frozenset[str]:
    """The adapters that are switched off."""
    return frozenset(tx.scalars(select(Adapter.name).where(Adapter.killed_at.is_not(None))))
