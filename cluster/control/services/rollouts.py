"""Rollouts as a service: their start and end; `cluster.control.rollouts` carries them out."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from cluster.control.adapter_locks import AdapterLocks
from cluster.control.kill_switch import KillSwitch
from cluster.control.promotion import Promotion
from cluster.control.rollout_store import RolloutStore
from cluster.control.rollouts import RolloutController
from cluster.control.routing import RoutingState
from cluster.errors import ConflictError, NotFoundError
from cluster.records.remarks import remark
from cluster.rollout.evidence import VariantStats
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.state import Report, Rollout
from cluster.types import AdapterVersion

#: Reports that are counted before others are served.
_REPORTS_AT_ONCE = 256


class RolloutService:
    """Implements `cluster.control.contracts.Rollouts`."""

    def __init__(
        self,
        controller: RolloutController,
        store: RolloutStore,
        routing: RoutingState,
        locks: AdapterLocks,
        promotion: Promotion,
    ) -> None:
        self._controller, self._store, self._routing = controller, store, routing
        self._locks, self._promotion = locks, promotion
        self._moving: dict[int, asyncio.Task[None]] = {}

    async def start(self, version: AdapterVersion, plan: RolloutPlan, by: str) -> Rollout:
        async with self._locks.one(version.name):
            record = self._promotion.passed(version)
            self._routing.refuse_killed(version.name)
            await self._promotion.require_unaltered(record)
            live = self._routing.present.live.get(version.name)
            if live is None:
                raise ConflictError(
                    f"no version of {version.name} is live, so it has no traffic to try a "
                    f"candidate on: promote {version} itself"
                )
            rollout = self._store.begin(version, live.id, plan, actor=by, now=time.time())
            self._controller.add(rollout)
        return rollout

    async def end(self, adapter: str, reason: str, by: str) -> None:
        if not self._controller.withdraw(adapter, f"{by}: {remark(reason)}"):
            raise NotFoundError(f"no rollout of {adapter[:64]!r} is under way")

    async def promote(self, adapter: str, by: str) -> None:
        async with self._locks.one(adapter):
            self._routing.refuse_killed(adapter)
            self._controller.promote(adapter, by, time.time())

    async def appeal(self, version: AdapterVersion, reason: str, by: str) -> None:
        async with self._locks.one(version.name):
            self._store.appeal(version, f"{by}: {remark(reason)}", by)

    async def listed(self, limit: int, owner: str | None = None) -> list[Rollout]:
        # Those under way with all the evidence that is in memory.
        present = {rollout.id: rollout for rollout in self._controller.active}
        return [present.get(rollout.id, rollout) for rollout in self._store.listed(limit, owner)]

    async def report(self, reports: list[Report]) -> None:
        for start in range(0, len(reports), _REPORTS_AT_ONCE):
            self._controller.take(*reports[start : start + _REPORTS_AT_ONCE])
            await asyncio.sleep(0)  # a backlog must not hold up others

    async def record_outcome(
        self, trace_id: str, version: AdapterVersion, found: VariantStats
    ) -> bool:
        return self._controller.judge(trace_id, version, found)

    def tick(self, kill_switch: KillSwitch) -> None:
        """Have every rollout moved on, concurrently: one that waits for a drain holds up none."""
        for rollout in self._controller.active:
            # What is off is withdrawn once that is on record.
            off = rollout.adapter in kill_switch.unpersisted
            if rollout.id not in self._moving and not off:
                move = asyncio.ensure_future(self._controller.move(rollout.id, time.time()))
                self._moving[rollout.id] = move
                move.add_done_callback(partial(self._moved, rollout.id))

    def _moved(self, rollout: int, _move: asyncio.Task[None]) -> None:
        del self._moving[rollout]
