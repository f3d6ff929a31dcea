"""The meter as a service: usage in, bills out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from cluster.audit import Head, Place
from cluster.budget.prices import PriceBook
from cluster.control.database import Database
from cluster.control.load_shares import LoadShares
from cluster.records.limits import key_scope
from cluster.records.usage import MeteredUsage
from cluster.registry import limits, tenants, usage, writers


class UsageService:
    """Implements `cluster.control.contracts.Usage`."""

    def __init__(self, database: Database, load: LoadShares) -> None:
        """`load` is kept current with what each adapter is asked for."""
        self._database, self._load = database, load
        self._read: dict[str, Place] = {}
        self._reconciling = asyncio.Lock()

    async def register_writer(self, writer: str) -> None:
        with self._database.write() as tx:
            writers.register(tx, writer, changes=False, now=time.time())

    async def record(self, writer: str, head: Head, rows: list[MeteredUsage]) -> int:
        now = time.time()
        for row in rows:
            self._load.add(row.version.partition("@")[0], row.requests + row.output_tokens, now)
        with self._database.write() as tx:
            writers.advance(tx, writer, head, now=now)
            return usage.insert(tx, rows)

    async def writers(self) -> tuple[dict[str, Head], dict[str, Head]]:
        with self._database.read() as tx:
            return writers.heads(tx, changes=False), writers.heads(tx, changes=True)

    async def bill(
        self,
        tenant: str,
        start: float,
        end: float,
        prices: PriceBook | None = None,
        adapters: Sequence[str] = (),
    ) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            with self._database.read() as tx:
                tenants.require(tx, tenant)
                return usage.bill(tx, tenant, start, end, prices, adapters=adapters)

        # The log is read: in a thread, and one at a time however many ask.
        async with self._reconciling:
            await asyncio.to_thread(
                usage.reconcile, self._database.write, self._database.audit, self._read
            )
        return await asyncio.to_thread(compute)

    async def key_spend(self, key_id: str) -> float:
        def compute() -> float:
            with self._database.read() as tx:
                now = time.time()
                since = limits.period_start(tx, key_scope(key_id), now)
                return usage.spent(tx, key_id, since, now + 1)

        return await asyncio.to_thread(compute)
