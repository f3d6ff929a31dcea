"""API keys: issued once, kept as a digest, resolved to a principal."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.registry.schema import ApiKey
from cluster.types import Principal, Role

PREFIX = "hr-"


def digest(secret: str) -> str:
    """The stored form of a key. Keys are 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def issue(
    tx: Session,
    *,
    tenant: str,
    roles: Iterable[Role],
    attributes: Mapping[str, str],
    now: float,
) -> str:
    """Create a key and return its secret, which cannot be read again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    tx.add(
        ApiKey(
            key_id=secrets.token_hex(8),
            digest=digest(secret),
            tenant=tenant,
            roles=sorted(roles),
            attributes=dict(attributes),
            created_at=now,
            revoked_at=None,
        )
    )
    return secret


def resolve(tx: Session, key_digest: str) -> Principal | None:
    """The principal of a key's digest, or None where the key is unknown or revoked."""
    row = tx.scalars(
        select(ApiKey).where(ApiKey.digest == key_digest, ApiKey.revoked_at.is_(None))
    ).first()
    if row is None:
        return None
    return Principal(
        row.key_id,
        row.tenant,
        frozenset(Role(role) for role in row.roles),
        {str(name): str(value) for name, value in row.attributes.items()},
    )
