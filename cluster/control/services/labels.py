"""The label queue as a service."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cluster.control.database import Database
from cluster.records.labels import GivenLabel, Label, LabelTask
from cluster.registry import labels, usage


class LabelService:
    """Implements `cluster.control.contracts.Labels`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enqueue(self, tasks: list[LabelTask]) -> int:
        with self._database.write() as tx:
            return labels.enqueue(tx, tasks, time.time())

    async def claim(
        self, tenant: str, annotator: str, limit: int, adapters: Sequence[str] = ()
    ) -> list[LabelTask]:
        with self._database.write() as tx:
            return labels.claim(tx, tenant, annotator, limit, time.time(), adapters=adapters)

    async def submit(self, tenant: str, given: list[GivenLabel]) -> int:
        with self._database.write() as tx:
            now = time.time()
            accepted = labels.submit(tx, tenant, given, now)
            for label in given:
                usage.work(tx, usage.LABELS, label.trace_id, tenant=tenant, amount=1, at=now)
            return accepted

    async def given(self, tenant: str, adapter: str) -> list[Label]:
        with self._database.read() as tx:
            return labels.labelled(tx, tenant, adapter)

    async def counts(self, tenant: str) -> dict[str, int]:
        with self._database.read() as tx:
            return labels.counts(tx, tenant)
