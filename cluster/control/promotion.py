"""Brings versions into service: what may, the verified swap, and the change of state with it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from sqlalchemy.orm import Session

from cluster.control import swap as swapping
from cluster.control.database import Database
from cluster.control.protocol import Fleet, SwapReport
from cluster.control.rollout_store import RolloutStore, served
from cluster.control.rollouts import RolloutController
from cluster.control.routing import RoutingState
from cluster.errors import ArtifactError, ConflictError
from cluster.records.adapter import AdapterRecord, ServedAdapter
from cluster.registry import bases, versions
from cluster.rollout.state import Status
from cluster.storage import require_stable
from cluster.types import AdapterVersion, VersionState


class Promotion:
    """The steps that promoting, reviving and rollouts share. Callers hold the adapter's lock."""

    def __init__(
        self,
        database: Database,
        fleet: Fleet,
        routing: RoutingState,
        store: RolloutStore,
        controller: RolloutController,
    ) -> None:
        self._database, self._fleet, self._routing = database, fleet, routing
        self._store, self._controller = store, controller

    def passed(self, version: AdapterVersion, *also: VersionState) -> AdapterRecord:
        """The record of a version that may serve: it passed the gate, or is in one of `also`.

        Raises:
            ConflictError: it may not, or a rollout of its adapter is under way.
        """
        with self._database.read() as tx:
            record = versions.get(tx, version)
            bases.require_serving(tx, record.manifest.base_digest)
        if record.state not in (VersionState.PASSED, *also):
            raise ConflictError(f"{version} is {record.state}: only a passed version is promoted")
        if (rollout := self._controller.of(version.name)) is not None:
            leaves = rollout.status in (Status.WITHDRAWING, Status.DRAINING)
            then = "it is ending, try again in a moment" if leaves else "end it first"
            raise ConflictError(f"a rollout of {version.name} is under way: {then}")
        return record

    async def require_unaltered(self, record: AdapterRecord) -> None:
        """Raise ArtifactError where a version's files are not what was registered."""
        if await asyncio.to_thread(require_stable, Path(record.path)) != record.digest:
            raise ArtifactError(f"{record.path} is not the directory that was registered")

    async def swap_in(
        self, record: AdapterRecord, old: ServedAdapter | None, by: str
    ) -> SwapReport:
        """Verify a version on every replica and let it serve in place of `old`."""
        await self.require_unaltered(record)
        new = self._store.know(record)
        self._routing.preparing[new.int_id] = new
        try:
            return await swapping.swap(self._fleet, new, old, lambda: self._flip(new, old, by))
        finally:
            self._routing.preparing.pop(new.int_id, None)

    async def verify(self, record: AdapterRecord) -> SwapReport:
        """Have every replica hold a version, before any request is routed to it."""
        await self.require_unaltered(record)
        adapter = served(record)
        self._routing.preparing[adapter.int_id] = adapter
        try:
            return await swapping.swap(self._fleet, adapter, None, lambda: None)
        finally:
            self._routing.preparing.pop(adapter.int_id, None)

    def _flip(self, new: ServedAdapter, old: ServedAdapter | None, by: str) -> None:
        # It may have been switched off while the new version was verified.
        self._routing.refuse_killed(new.name)
        with self._database.change() as tx:
            replace_live(tx, old.id if old is not None else None, new.id, by)
        # Nothing else has changed, and with thousands of adapters all of them are much to read.
        self._routing.publish(live={**self._routing.present.live, new.name: new})


def replace_live(tx: Session, old: AdapterVersion | None, new: AdapterVersion, by: str) -> None:
    """Make `new` the live version in place of `old`."""
    now = time.time()
    if old is not None:
        versions.set_state(tx, old, VersionState.RETIRED, f"by {new}", actor=by, now=now)
    versions.set_state(tx, new, VersionState.LIVE, "promoted", actor=by, now=now)
