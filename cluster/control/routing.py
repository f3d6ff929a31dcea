"""The routing table: what the registry says serves, less what is switched off.

Owns the table and its generation, which only grows. Gateways poll with `watch`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from cluster.control.database import Database
from cluster.control.kill_switch import KillSwitch
from cluster.control.load_shares import LoadShares
from cluster.control.protocol import RoutingTable, Split
from cluster.control.rollout_store import RolloutStore
from cluster.errors import ConflictError
from cluster.records.adapter import ServedAdapter
from cluster.registry import access, versions
from cluster.types import AdapterVersion

#: Least share of the load that is published, and the least change of one that is published anew.
_MIN_SHARE, _SHARE_STEP = 0.05, 0.1


class RoutingState:
    """The present routing table, and what engine replicas have to hold because of it."""

    def __init__(
        self, database: Database, store: RolloutStore, kill_switch: KillSwitch, load: LoadShares
    ) -> None:
        self._database, self._store, self._kill_switch = database, store, kill_switch
        self._load = load
        self._splits: Callable[[], Mapping[str, Split]] = dict
        self._on_trial: Callable[[], set[AdapterVersion]] = set
        self._changed = asyncio.Condition()
        self._announcement: asyncio.Future[None] | None = None
        self.owners: dict[str, str] = {}
        """Tenant by adapter."""
        self.preparing: dict[int, ServedAdapter] = {}
        """Versions that are about to serve, by the engine's id."""
        # Later than any generation of a control plane before this one: the clock is the epoch.
        start = int(time.time() * 1000)
        self.present = RoutingTable(start, keys=start)

    def load(
        self,
        splits: Callable[[], Mapping[str, Split]],
        on_trial: Callable[[], set[AdapterVersion]],
    ) -> None:
        """Fill the table, and read candidates and versions on trial from these from here on. The
        second phase of the construction: both come from objects that are given this one."""
        self._splits, self._on_trial = splits, on_trial
        with self._database.read() as tx:
            self.present = replace(self.present, **self._known(tx))

    def refresh(self) -> None:
        """Publish what the registry says now."""
        with self._database.read() as tx:
            self.publish(**self._known(tx))

    def _known(self, tx: Session) -> dict[str, Any]:
        killed = access.killed(tx) | self._kill_switch.unpersisted
        ids = versions.live_ids(tx)
        self._store.retain({*ids.values(), *self._on_trial()})
        live = {name: self._store.served(v) for name, v in ids.items() if name not in killed}
        splits = {n: s for n, s in self._splits().items() if n not in killed}
        self.owners = access.owners(tx)
        reach = access.access(tx, self.owners)
        return {"live": live, "access": reach, "killed": killed, "splits": splits}

    def publish(self, **changes: Any) -> None:
        """Replace fields of the table under a new generation, and wake those who watch it."""
        generation = self.present.generation + 1
        self.present = replace(self.present, generation=generation, **changes)
        self._announcement = asyncio.ensure_future(self._announce())

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def invalidate_keys(self) -> None:
        """Have the gateways drop what they cached of keys."""
        self.publish(keys=self.present.keys + 1)

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        """The table once it is newer than `generation`, or as it is after `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self.present.generation > generation), timeout_s
                )
            except TimeoutError:
                pass
        return self.present.without_probes()

    def refuse_killed(self, name: str) -> None:
        """Raise ConflictError where adapter `name` is switched off."""
        if name in self.present.killed:
            raise ConflictError(f"adapter {name!r} is switched off: revive it first")

    def by_load(self) -> list[ServedAdapter]:
        """The live versions, busiest first."""
        live = self.present.live
        return [live[name] for name in self._load.shares(live, time.time())]

    def publish_shares(self) -> None:
        """Publish how the load is shared, where that has changed enough to matter."""
        found = self._load.shares(self.present.live, time.time())
        shares = {name: round(share, 2) for name, share in found.items() if share >= _MIN_SHARE}
        before = self.present.shares
        moved = (abs(shares.get(n, 0) - before.get(n, 0)) for n in shares.keys() | before.keys())
        if any(step >= _SHARE_STEP for step in moved):
            self.publish(shares=shares)
