"""The catalogue of adapter versions as a service: it changes nothing of what serves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cluster import adapters
from cluster.control.database import Database
from cluster.control.routing import RoutingState
from cluster.records.adapter import AdapterRecord
from cluster.records.model import BaseModelInfo
from cluster.registry import access, bases, card, events, usage, versions
from cluster.storage import require_stable
from cluster.types import AdapterVersion


class AdapterService:
    """Implements `cluster.control.contracts.Adapters`."""

    def __init__(self, database: Database, routing: RoutingState, max_rank: int) -> None:
        """`max_rank` is the largest LoRA rank that the engines take."""
        self._database, self._routing, self._max_rank = database, routing, max_rank

    async def register(self, path: str, owner: str, by: str) -> AdapterVersion:
        # Every byte is read, in a thread: the gateways' questions are answered meanwhile.
        manifest = await asyncio.to_thread(adapters.inspect, Path(path), max_rank=self._max_rank)
        digest = await asyncio.to_thread(require_stable, Path(path))
        now = time.time()
        with self._database.change() as tx:
            versions.register(tx, manifest, Path(path), digest, owner=owner, actor=by, now=now)
            label, seconds = str(manifest.id), manifest.seconds
            usage.work(tx, usage.TRAINING, label, tenant=owner, amount=seconds, at=now)
        self._routing.refresh()
        return manifest.id

    async def version(self, version: AdapterVersion) -> AdapterRecord:
        with self._database.read() as tx:
            return versions.get(tx, version)

    async def live(self, adapter: str) -> AdapterRecord | None:
        with self._database.read() as tx:
            found = versions.live_ids(tx).get(adapter)
            return versions.get(tx, found) if found is not None else None

    async def listed(self) -> list[AdapterRecord]:
        def listed() -> list[AdapterRecord]:
            with self._database.read() as tx:
                return versions.listed(tx)

        # There may be thousands, each with its golden probes.
        return await asyncio.to_thread(listed)

    async def next_version(self, name: str) -> int:
        with self._database.read() as tx:
            return versions.next_version(tx, name)

    async def owner(self, adapter: str) -> str | None:
        # From memory: a kill must not wait for the database.
        return self._routing.owners.get(adapter)

    async def grant(self, adapter: str, tenant: str, granted: bool, by: str) -> None:
        with self._database.change() as tx:
            change = access.grant if granted else access.withdraw
            change(tx, adapter, tenant, actor=by, now=time.time())
        self._routing.refresh()

    async def card(self, version: AdapterVersion, *, leaving: bool = False) -> str:
        with self._database.read() as tx:
            return card.write(tx, version, leaving=leaving)

    async def record_export(self, version: AdapterVersion, signed_by: str, by: str) -> None:
        with self._database.change() as tx:
            record = versions.get(tx, version)
            detail = {"digest": record.digest, "signed_by": signed_by}
            events.note(tx, "version.exported", str(version), detail, actor=by, now=time.time())

    async def base_model(self, digest: str | None = None) -> BaseModelInfo:
        with self._database.read() as tx:
            wanted = bases.serving(tx) if digest is None else digest
            return bases.get(tx, wanted or "")
