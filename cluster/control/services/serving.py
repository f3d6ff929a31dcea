"""What serves, as a service: the routing table, promotion, the kill switch and the base model."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from cluster.control.adapter_locks import AdapterLocks
from cluster.control.database import Database
from cluster.control.kill_switch import KillSwitch
from cluster.control.promotion import Promotion, replace_live
from cluster.control.protocol import Fleet, KillReport, RoutingTable, SwapReport
from cluster.control.rollouts import RolloutController
from cluster.control.routing import RoutingState
from cluster.errors import ConflictError, NotFoundError
from cluster.records.adapter import AdapterRecord, ServedAdapter
from cluster.records.model import BaseModelInfo
from cluster.registry import access, bases, versions
from cluster.types import AdapterVersion, VersionState

logger = logging.getLogger(__name__)


class ServingService:
    """Implements `cluster.control.contracts.Serving`."""

    def __init__(
        self,
        *,
        database: Database,
        fleet: Fleet,
        routing: RoutingState,
        kill_switch: KillSwitch,
        controller: RolloutController,
        locks: AdapterLocks,
        promotion: Promotion,
        start_background_loop: Callable[[], None],
    ) -> None:
        """`start_background_loop` is called when a gateway watches the table: an event loop runs
        by then. It starts the loop once."""
        self._database, self._fleet, self._routing = database, fleet, routing
        self._kill_switch, self._controller = kill_switch, controller
        self._locks, self._promotion = locks, promotion
        self._start_background_loop = start_background_loop
        # Epoch by adapter: tells a revival that its adapter was killed again meanwhile.
        self._kills = Counter[str]()

    async def table(self) -> RoutingTable:
        return self._routing.present.without_probes()

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        self._start_background_loop()
        return await self._routing.watch(generation, timeout_s)

    async def desired(self) -> list[ServedAdapter]:
        return [replace(adapter, golden=()) for adapter in self._desired()]

    async def desired_version(self, int_id: int) -> ServedAdapter | None:
        return next((one for one in self._desired() if one.int_id == int_id), None)

    def _desired(self) -> list[ServedAdapter]:
        killed = self._routing.present.killed
        candidates = [one for one in self._controller.wanted() if one.name not in killed]
        return [*self._routing.preparing.values(), *candidates, *self._routing.by_load()]

    async def serve_base(self, info: BaseModelInfo, by: str) -> list[str]:
        # Not while a version of the base before is verified: it would be live after all.
        async with self._locks.all():
            with self._database.change() as tx:
                marked = bases.serve(tx, info, actor=by, now=time.time())
            for label in marked:
                name = label.partition("@")[0]
                self._controller.withdraw(name, "the base model was replaced")
            self._routing.refresh()
        return marked

    async def promote(self, version: AdapterVersion, by: str) -> SwapReport:
        async with self._locks.one(version.name):
            record = self._promotion.passed(version, VersionState.RETIRED)
            self._routing.refuse_killed(version.name)
            live = self._routing.present.live.get(version.name)
            return await self._promotion.swap_in(record, live, by)

    async def kill(self, adapter: str, reason: str, by: str) -> KillReport:
        started, table = time.monotonic(), self._routing.present
        if adapter not in table.access:
            raise NotFoundError(f"there is no adapter {adapter[:64]!r}")
        self._kills[adapter] += 1
        self._kill_switch.add(adapter, reason, actor=by, now=time.time())
        # Disable first, persist later: the registry may be what has failed.
        self._routing.publish(
            killed=table.killed | {adapter},
            live={name: version for name, version in table.live.items() if name != adapter},
            splits={name: split for name, split in table.splits.items() if name != adapter},
        )
        aborted, confirmed = 0, True
        try:
            aborted = await self._fleet.kill(adapter)
        except Exception:  # the gateways route nothing to it any more, whatever a replica says
            logger.exception("not every engine replica confirmed that %s is off", adapter)
            confirmed = False
        seconds = time.monotonic() - started
        recorded = self._kill_switch.persist(adapter, time.time())
        try:
            self._controller.withdraw(adapter, "the adapter was switched off")
        except Exception:  # it is off whether or not that can be written; the next tick does it
            logger.exception("the rollout of %s is not withdrawn yet", adapter)
        was = table.live.get(adapter)
        label = was.label if was is not None else None
        return KillReport(adapter, label, aborted, confirmed, recorded, seconds)

    async def revive(
        self, adapter: str, by: str, version: AdapterVersion | None = None
    ) -> SwapReport | None:
        async with self._locks.one(adapter):
            if not self._kill_switch.persist(adapter, time.time()):
                raise ConflictError(
                    f"the kill of {adapter!r} could not be recorded: see that the registry and "
                    "the audit log can be written to, then revive it"
                )
            with self._database.read() as tx:
                live = versions.live_ids(tx).get(adapter)
                if adapter not in access.killed(tx):
                    raise ConflictError(f"adapter {adapter!r} is not switched off")
            # That may not have been possible when it was switched off.
            self._controller.withdraw(adapter, "the adapter was switched off")
            epoch, chosen = self._kills[adapter], version or live
            report = None
            if chosen is not None:
                report = await self._promotion.verify(self._revivable(chosen, live))
            if epoch != self._kills[adapter]:
                raise ConflictError(f"adapter {adapter!r} was switched off again meanwhile")
            with self._database.change() as tx:
                if chosen is not None and chosen != live:
                    replace_live(tx, live, chosen, by)
                access.revive(tx, adapter, actor=by, now=time.time())
            self._routing.refresh()
            return report

    def _revivable(self, chosen: AdapterVersion, live: AdapterVersion | None) -> AdapterRecord:
        if chosen != live:
            return self._promotion.passed(chosen, VersionState.RETIRED)
        with self._database.read() as tx:
            return versions.get(tx, chosen)
