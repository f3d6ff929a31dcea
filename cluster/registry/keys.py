"""API keys: issued once, kept as a digest, resolved until they expire or are revoked."""

from __future__ import annotations

import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.errors import NotFoundError
from cluster.records.keys import (
    END,
    LIMITS,
    MODELS,
    PREFIX,
    IssuedKey,
    KeyChange,
    KeyRecord,
    KeyRequest,
    digest,
)
from cluster.records.limits import Limits, key_scope
from cluster.registry import events, limits, tenants
from cluster.registry.schema import ApiKey, PrincipalRow, Tenant
from cluster.types import Principal, Role


def issue(
    tx: Session, request: KeyRequest, *, actor: str, now: float, by_operator: bool = False
) -> IssuedKey:
    """Create a key, and its tenant and principal where they are new. What an operator bounds it by
    is an operator's to widen."""
    bounds = {
        MODELS: bool(request.models),
        END: request.lasts_s is not None,
        LIMITS: request.limits.bounded,
    }
    tenants.ensure(tx, request.tenant, actor=actor, now=now)
    issued = IssuedKey(secrets.token_hex(8), PREFIX + secrets.token_urlsafe(32))
    tx.add(
        ApiKey(
            key_id=issued.key_id,
            digest=digest(issued.secret),
            alias=request.alias,
            tenant=request.tenant,
            principal=tenants.principal(tx, request.tenant, request.principal, now),
            roles=sorted(request.roles),
            models=sorted(request.models),
            attributes=dict(request.attributes),
            held=[name for name, bounded in bounds.items() if bounded and by_operator],
            created_at=now,
            expires_at=None if request.lasts_s is None else now + request.lasts_s,
            revoked_at=None,
        )
    )
    detail = {"tenant": request.tenant, "roles": sorted(request.roles), "alias": request.alias}
    events.note(tx, "key.issued", issued.key_id, detail, actor=actor, now=now)
    if request.limits.bounded:
        tx.flush()
        limits.put(tx, key_scope(issued.key_id), request.limits, actor=actor, now=now)
    return issued


def change(
    tx: Session,
    key_id: str,
    wanted: KeyChange,
    *,
    actor: str,
    now: float,
    by_operator: bool = False,
) -> None:
    """Give a key another alias, other adapters or another end.

    Raises:
        NotFoundError: there is no such key, or it was revoked, or has expired.
    """
    row = tx.get(ApiKey, key_id)
    over = row is not None and row.expires_at is not None and row.expires_at <= now
    if row is None or row.revoked_at is not None or over:
        raise NotFoundError(f"there is no key {key_id[:64]!r} in use")
    if wanted.alias is not None:
        row.alias = wanted.alias
    if wanted.models is not None:
        row.models = sorted(wanted.models)
    if "lasts_s" in wanted.model_fields_set:
        row.expires_at = None if wanted.lasts_s is None else now + wanted.lasts_s
    if by_operator:
        if wanted.models is not None:
            _hold(row, MODELS, bool(wanted.models))
        if "lasts_s" in wanted.model_fields_set:
            _hold(row, END, wanted.lasts_s is not None)
    detail = wanted.model_dump(mode="json", exclude_unset=True)
    events.note(tx, "key.changed", key_id, detail, actor=actor, now=now)


def hold_limits(tx: Session, key_id: str, limits: Limits) -> None:
    """Note that an operator set the limits of a key."""
    if (row := tx.get(ApiKey, key_id)) is not None:
        _hold(row, LIMITS, limits.bounded)


def _hold(row: ApiKey, name: str, held: bool) -> None:
    others = [other for other in row.held if other != name]
    row.held = [*others, name] if held else others


def revoke(tx: Session, key_id: str, *, actor: str, now: float) -> None:
    """End a key; ending it twice is ending it once.

    Raises:
        NotFoundError: there is no such key.
    """
    row = tx.get(ApiKey, key_id)
    if row is None:
        raise NotFoundError(f"there is no key {key_id[:64]!r}")
    if row.revoked_at is None:
        row.revoked_at = now
        limits.drop(tx, key_scope(key_id))
        events.note(tx, "key.revoked", key_id, {"tenant": row.tenant}, actor=actor, now=now)


def resolve(tx: Session, key_digest: str, now: float) -> Principal | None:
    """The principal of a key's digest; None where it is unknown, over or its tenant suspended."""
    usable = (ApiKey.digest == key_digest, ApiKey.revoked_at.is_(None))
    found = tx.execute(
        select(ApiKey, PrincipalRow.name)
        .join(Tenant, Tenant.name == ApiKey.tenant)
        .join(PrincipalRow, PrincipalRow.principal_id == ApiKey.principal)
        .where(*usable, Tenant.suspended_at.is_(None))
    ).first()
    if found is None:
        return None
    row, name = found
    if row.expires_at is not None and row.expires_at <= now:
        return None
    return Principal(
        row.key_id,
        row.tenant,
        frozenset(Role(role) for role in row.roles),
        {str(name): str(value) for name, value in row.attributes.items()},
        name=name,
        models=frozenset(row.models),
        expires_at=row.expires_at,
        limited=limits.scopes(tx, row.tenant, row.key_id),
    )


def listed(tx: Session, tenant: str | None = None) -> list[KeyRecord]:
    """Every key, or a tenant's, oldest first."""
    query = select(ApiKey, PrincipalRow.name).join(
        PrincipalRow, PrincipalRow.principal_id == ApiKey.principal
    )
    if tenant is not None:
        query = query.where(ApiKey.tenant == tenant)
    bounded = {scope: bounds for scope, (bounds, _) in limits.listed(tx).items()}
    return [
        KeyRecord(
            row.key_id,
            row.alias,
            row.tenant,
            name,
            tuple(row.roles),
            tuple(row.models),
            row.created_at,
            row.expires_at,
            row.revoked_at,
            bounded.get(key_scope(row.key_id), Limits()),
            dict(row.attributes),
            frozenset(row.held),
        )
        for row, name in tx.execute(query.order_by(ApiKey.created_at, ApiKey.key_id))
    ]
