"""API keys and tenants, in the registry."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.control.database import Database
from cluster.records.keys import IssuedKey, KeyChange, KeyRecord, KeyRequest
from cluster.records.limits import key_scope
from cluster.registry import keys, tenants
from cluster.types import Principal


class KeyService:
    """Implements `cluster.control.contracts.Keys`."""

    def __init__(
        self, database: Database, reopen: Callable[[str], None], invalidate: Callable[[], None]
    ) -> None:
        """`reopen` has the ledger read a scope's limits again; `invalidate` has the gateways drop
        what they cached of keys."""
        self._database, self._reopen, self._invalidate = database, reopen, invalidate

    async def issue(self, request: KeyRequest, by: str, *, by_operator: bool = False) -> IssuedKey:
        with self._database.change() as tx:
            issued = keys.issue(tx, request, actor=by, now=time.time(), by_operator=by_operator)
        if request.limits.bounded:
            self._reopen(key_scope(issued.key_id))
        return issued

    async def change(
        self, key_id: str, change: KeyChange, by: str, *, by_operator: bool = False
    ) -> None:
        with self._database.change() as tx:
            keys.change(tx, key_id, change, actor=by, now=time.time(), by_operator=by_operator)
        self._invalidate()

    async def revoke(self, key_id: str, by: str) -> None:
        with self._database.change() as tx:
            keys.revoke(tx, key_id, actor=by, now=time.time())
        self._reopen(key_scope(key_id))
        self._invalidate()

    async def listed(self, tenant: str | None = None) -> list[KeyRecord]:
        with self._database.read() as tx:
            return keys.listed(tx, tenant)

    async def resolve(self, digest: str) -> Principal | None:
        with self._database.read() as tx:
            return keys.resolve(tx, digest, time.time())

    async def suspend_tenant(self, tenant: str, suspended: bool, by: str) -> None:
        with self._database.change() as tx:
            tenants.suspend(tx, tenant, suspended=suspended, actor=by, now=time.time())
        self._invalidate()
