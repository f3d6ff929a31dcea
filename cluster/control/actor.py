"""The control plane actor: wires the registry, the gate and the swap, and serialises changes.

The only place besides `serve_app/graph.py` that constructs and connects. One process owns the
database connection, so that no request path ever waits on SQL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from cluster import adapters
from cluster.control import swap as swapping
from cluster.control.books import Books
from cluster.control.kills import Kills
from cluster.control.protocol import Fleet, KillReport, RoutingTable, ServedAdapter, SwapReport
from cluster.control.rollout_store import RolloutStore, served
from cluster.control.rollouts import RolloutController
from cluster.control.turns import Turns
from cluster.errors import ArtifactError, ConflictError
from cluster.registry import (
    access,
    bases,
    usage,
    versions,
)
from cluster.registry.bases import BaseModelInfo
from cluster.registry.remarks import remark
from cluster.registry.versions import AdapterRecord
from cluster.rollout.evidence import Arm
from cluster.rollout.gate import GateConfig, Verdict, judge
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.state import Report, Rollout, Status
from cluster.storage import require_stable
from cluster.types import AdapterVersion, VersionState

logger = logging.getLogger(__name__)

_TICK_S = 1.0
#: Reports that are counted in one go.
_AT_ONCE = 256
#: What a share of the load has to be to be told, and by how much one has to move to be told anew.
_SHARE, _SHARE_STEP = 0.05, 0.1


class ControlPlane(Books):
    """The registry's single writer. Made into a named Ray actor by `cluster.runtime`."""

    def __init__(self, database: str, fleet: Fleet, max_rank: int, audit: Path) -> None:
        """`audit` is the folder of the audit log; what is changed here is chained below it."""
        super().__init__(database, audit)
        self._fleet = fleet
        self._max_rank = max_rank
        self._changing = Turns()
        self._changed = asyncio.Condition()
        self._preparing: dict[int, ServedAdapter] = {}
        self._owners: dict[str, str] = {}
        self._kills, self._off_switch = Counter[str](), Kills(self._change)
        self._store = RolloutStore(
            lambda: Session(self._engine), self._change, lambda: self._off_switch.unrecorded
        )
        self._rollouts = RolloutController(self._store, fleet, self._refresh)
        self._ticking: asyncio.Task[None] | None = None
        self._moving: dict[int, asyncio.Task[None]] = {}
        # Later than whatever a control plane before this one has told the gateways.
        start = int(time.time() * 1000)
        self._table = RoutingTable(start, keys=start)
        with Session(self._engine) as tx:
            self._table = replace(self._table, **self._known(tx))

    def _known(self, tx: Session) -> dict[str, Any]:
        """What the registry has to say about the routing table."""
        killed = access.killed(tx) | self._off_switch.unrecorded
        ids = versions.live_ids(tx)
        self._store.forget_but({*ids.values(), *self._rollouts.versions})
        live = {name: self._store.served(v) for name, v in ids.items() if name not in killed}
        splits = {n: s for n, s in self._rollouts.splits().items() if n not in killed}
        self._owners = access.owners(tx)
        reach = access.access(tx, self._owners)
        return {"live": live, "access": reach, "killed": killed, "splits": splits}

    def _refresh(self) -> None:
        """Tell the gateways what the registry says now."""
        with Session(self._engine) as tx:
            self._publish(**self._known(tx))

    def _keys_changed(self) -> None:
        self._publish(keys=self._table.keys + 1)

    # -- routing table ----------------------------------------------------------------------

    async def table(self) -> RoutingTable:
        """The present routing table."""
        return self._table.unproved()

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        """The table once it is newer than `generation`, or as it is after `timeout_s`."""
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.ensure_future(self._tick())
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._table.generation > generation), timeout_s
                )
            except TimeoutError:
                pass
        return self._table.unproved()

    async def desired(self) -> list[ServedAdapter]:
        """What an engine replica is to hold, what it needs first at the front; without what proves
        it, which `wanted` has."""
        return [replace(adapter, golden=()) for adapter in self._desired()]

    def _desired(self) -> list[ServedAdapter]:
        wanted = [adapter for adapter in self._rollouts.wanted() if not self._off(adapter.name)]
        live = self._table.live
        busiest = [live[name] for name in self._traffic.shares(live, time.time())]
        return [*self._preparing.values(), *wanted, *busiest]

    async def wanted(self, int_id: int) -> ServedAdapter | None:
        """The version with `int_id`, if engines are to hold it."""
        return next((one for one in self._desired() if one.int_id == int_id), None)

    # -- adapters ---------------------------------------------------------------------------

    async def serve_base(self, info: BaseModelInfo, actor: str) -> list[str]:
        """Make `info` the base model that serves; labels of the versions to be fitted again."""
        # Not while a version of the base before is proved: it would be live after all.
        async with self._changing.everywhere():
            with self._change() as tx:
                marked = bases.serve(tx, info, actor=actor, now=time.time())
            for label in marked:
                self._rollouts.withdraw(label.partition("@")[0], "the base model was replaced")
            self._refresh()
        return marked

    async def register_candidate(self, path: str, owner: str, actor: str) -> AdapterVersion:
        """Check a published adapter directory and register it as a candidate of `owner`'s."""
        # Every byte is read, in a thread: the gateways' questions are answered meanwhile.
        manifest = await asyncio.to_thread(adapters.inspect, Path(path), max_rank=self._max_rank)
        digest = await asyncio.to_thread(require_stable, Path(path))
        with self._change() as tx:
            versions.register(
                tx, manifest, Path(path), digest, owner=owner, actor=actor, now=time.time()
            )
            label, seconds = str(manifest.id), manifest.seconds
            usage.work(tx, usage.TRAINING, label, tenant=owner, amount=seconds, at=time.time())
        self._refresh()
        return manifest.id

    async def owner(self, adapter: str) -> str | None:
        """The tenant an adapter belongs to, or None where there is no such adapter."""
        # From memory: whoever switches one off must not wait for the database.
        return self._owners.get(adapter)

    async def grant(self, name: str, tenant: str, granted: bool, actor: str) -> None:
        """Let `tenant` reach adapter `name`, or no longer; `*` is every tenant."""
        with self._change() as tx:
            change = access.grant if granted else access.withdraw
            change(tx, name, tenant, actor=actor, now=time.time())
        self._refresh()

    async def gate(self, version: AdapterVersion, config: GateConfig, actor: str) -> Verdict:
        """Judge a candidate and record the verdict.

        Raises:
            ConflictError: the version is not a candidate, or was not compared with what is live.
        """
        with self._change() as tx:
            record = versions.get(tx, version)
            if record.state != VersionState.CANDIDATE:
                raise ConflictError(f"{version} is {record.state}, not a candidate")
            # Switched off or not: what replaces it has to be better.
            live = versions.live_ids(tx).get(version.name)
            compared = record.manifest.evaluation.previous
            if compared != (str(live) if live else None):
                raise ConflictError(
                    f"{version} was evaluated against {compared}, but {live or 'nothing'} is "
                    "live: evaluate it again"
                )
            verdict = judge(record.manifest.evaluation, config)
            state = VersionState.PASSED if verdict.passed else VersionState.REJECTED
            versions.set_state(tx, version, state, verdict.reason, actor=actor, now=time.time())
        return verdict

    async def promote(self, version: AdapterVersion, actor: str) -> SwapReport:
        """Swap a passed version in, or one that served before, while the others keep serving.

        Raises:
            ConflictError: the version has not passed the gate, or its adapter is switched off.
            ArtifactError: its directory is not what was registered.
            SwapError: it was not proved on every replica.
        """
        async with self._changing.of(version.name):
            record = self._passed(version, VersionState.RETIRED)
            self._refuse_killed(version.name)
            return await self._bring_in(record, self._table.live.get(version.name), actor)

    async def _bring_in(
        self, record: AdapterRecord, old: ServedAdapter | None, actor: str
    ) -> SwapReport:
        await self._require_unaltered(record)
        new = self._store.know(record)
        self._preparing[new.int_id] = new
        try:
            return await swapping.swap(self._fleet, new, old, lambda: self._flip(new, old, actor))
        finally:
            self._preparing.pop(new.int_id, None)

    async def _require_unaltered(self, record: AdapterRecord) -> None:
        if await asyncio.to_thread(require_stable, Path(record.path)) != record.digest:
            raise ArtifactError(f"{record.path} is not the directory that was registered")

    def _flip(self, new: ServedAdapter, old: ServedAdapter | None, actor: str) -> None:
        # It may have been switched off while the new version was proved.
        self._refuse_killed(new.name)
        former = AdapterVersion(old.name, old.version) if old is not None else None
        with self._change() as tx:
            self._replace(tx, former, AdapterVersion(new.name, new.version), actor)
        # Nothing else has changed, and with thousands of adapters all of them are much to read.
        self._publish(live={**self._table.live, new.name: new})

    def _off(self, name: str) -> bool:
        return name in self._table.killed

    def _refuse_killed(self, name: str) -> None:
        if self._off(name):
            raise ConflictError(f"adapter {name!r} is switched off: revive it first")

    # -- the kill switch --------------------------------------------------------------------

    async def kill(self, name: str, reason: str, actor: str) -> KillReport:
        """Switch an adapter off everywhere; it waits for no swap under way, nor for a disk.

        Raises:
            ConflictError: there is no such adapter.
        """
        started, table = time.monotonic(), self._table
        if name not in table.access:
            raise ConflictError(f"there is no adapter {name[:64]!r}")
        self._kills[name] += 1
        self._off_switch.add(name, reason, actor=actor, now=time.time())
        # Before it is recorded, and without a look into the registry: that may be what has failed.
        self._publish(
            killed=table.killed | {name},
            live={other: version for other, version in table.live.items() if other != name},
            splits={other: split for other, split in table.splits.items() if other != name},
        )
        aborted, confirmed = 0, True
        try:
            aborted = await self._fleet.kill(name)
        except Exception:  # the gateways route nothing to it any more, whatever a replica says
            logger.exception("not every engine replica confirmed that %s is off", name)
            confirmed = False
        seconds = time.monotonic() - started
        recorded = self._off_switch.record(name, time.time())
        try:
            self._rollouts.withdraw(name, "the adapter was switched off")
        except Exception:  # it is off whether or not that can be written; the next tick does it
            logger.exception("the rollout of %s is not withdrawn yet", name)
        was = table.live.get(name)
        return KillReport(name, was.label if was else None, aborted, confirmed, recorded, seconds)

    async def revive(
        self, name: str, actor: str, version: AdapterVersion | None = None
    ) -> SwapReport | None:
        """Let a killed adapter serve again, proved anew: with the version that was live, or with
        `version`, which passed or served before. None where there is none of either.

        Raises:
            ConflictError: it is not killed, or `version` has not passed the gate.
            SwapError: its version was not proved on every replica; it stays off.
        """
        async with self._changing.of(name):
            if not self._off_switch.record(name, time.time()):
                raise ConflictError(
                    f"that {name!r} is off could not be recorded: see that the registry and the "
                    "audit log can be written to, then revive it"
                )
            with Session(self._engine) as tx:
                live = versions.live_ids(tx).get(name)
                if name not in access.killed(tx):
                    raise ConflictError(f"adapter {name!r} is not switched off")
            # That may not have been possible when it was switched off.
            self._rollouts.withdraw(name, "the adapter was switched off")
            kills, chosen = self._kills[name], version or live
            report = await self._prove(self._revivable(chosen, live)) if chosen else None
            if kills != self._kills[name]:
                raise ConflictError(f"adapter {name!r} was switched off again meanwhile")
            with self._change() as tx:
                if chosen is not None and chosen != live:
                    self._replace(tx, live, chosen, actor)
                access.revive(tx, name, actor=actor, now=time.time())
            self._refresh()
            return report

    def _revivable(self, chosen: AdapterVersion, live: AdapterVersion | None) -> AdapterRecord:
        if chosen != live:
            return self._passed(chosen, VersionState.RETIRED)
        with Session(self._engine) as tx:
            return versions.get(tx, chosen)

    @staticmethod
    def _replace(tx: Session, old: AdapterVersion | None, new: AdapterVersion, actor: str) -> None:
        """Have `new` be live in place of `old`."""
        now = time.time()
        if old is not None:
            retired = VersionState.RETIRED
            versions.set_state(tx, old, retired, f"by {new}", actor=actor, now=now)
        versions.set_state(tx, new, VersionState.LIVE, "promoted", actor=actor, now=now)

    async def _prove(self, record: AdapterRecord) -> SwapReport:
        """Have every replica hold a killed adapter's version again, before anyone is sent to it."""
        await self._require_unaltered(record)
        adapter = served(record)
        self._preparing[adapter.int_id] = adapter
        try:
            return await swapping.swap(self._fleet, adapter, None, lambda: None)
        finally:
            self._preparing.pop(adapter.int_id, None)

    # -- rollouts ---------------------------------------------------------------------------

    async def start_rollout(
        self, version: AdapterVersion, plan: RolloutPlan, actor: str
    ) -> Rollout:
        """Bring a passed version to the users step by step.

        Raises:
            ConflictError: it has not passed the gate, its adapter is switched off or has no live
                version, or another rollout of it is under way.
            ArtifactError: its directory is not what was registered.
        """
        async with self._changing.of(version.name):
            record = self._passed(version)
            self._refuse_killed(version.name)
            await self._require_unaltered(record)
            live = self._table.live.get(version.name)
            if live is None:
                raise ConflictError(
                    f"nothing of {version.name} is live, so nobody asks for it yet: "
                    f"promote {version} itself"
                )
            baseline = AdapterVersion(live.name, live.version)
            rollout = self._store.begin(version, baseline, plan, actor=actor, now=time.time())
            self._rollouts.add(rollout)
        return rollout

    async def end_rollout(self, adapter: str, reason: str, actor: str) -> None:
        """Take the adapter's candidate back.

        Raises:
            ConflictError: no rollout of it is under way.
        """
        if not self._rollouts.withdraw(adapter, f"{actor}: {remark(reason)}"):
            raise ConflictError(f"no rollout of {adapter[:64]!r} is under way")

    async def appeal(self, version: AdapterVersion, reason: str, actor: str) -> None:
        """Let a version that a rollout refused be tried again, on record.

        Raises:
            ConflictError: no rollout refused it; what the gate refuses is evaluated again.
        """
        async with self._changing.of(version.name):
            self._store.appeal(version, f"{actor}: {remark(reason)}", actor)

    async def promote_rollout(self, adapter: str, actor: str) -> None:
        """Promote the candidate of a rollout that waits for a person.

        Raises:
            ConflictError: no rollout of it is under way, or it has not shown what it had to.
        """
        async with self._changing.of(adapter):
            self._refuse_killed(adapter)
            self._rollouts.promote(adapter, actor, time.time())

    async def rollouts(self, limit: int, owner: str | None = None) -> list[Rollout]:
        """The newest rollouts, newest first; those under way with all that was seen of them.

        Of `owner`'s adapters, or of everyone's.
        """
        now = {rollout.id: rollout for rollout in self._rollouts.active}
        return [now.get(rollout.id, rollout) for rollout in self._store.listed(limit, owner)]

    async def report(self, reports: list[Report]) -> None:
        """Count what a gateway saw of the rollouts under way."""
        for start in range(0, len(reports), _AT_ONCE):
            self._rollouts.take(*reports[start : start + _AT_ONCE])
            await asyncio.sleep(0)  # after a while away there are many

    async def judge(self, trace_id: str, version: AdapterVersion, found: Arm) -> bool:
        """Count what became of an answer on trial; once, and only of one that was given."""
        return self._rollouts.judge(trace_id, version, found)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._off_switch.catch_up(time.time())
            # Side by side: what one waits for, such as a drain, holds up no other.
            for rollout in self._rollouts.active:
                # What is off is withdrawn once that is on record.
                off = rollout.adapter in self._off_switch.unrecorded
                if rollout.id not in self._moving and not off:
                    move = asyncio.ensure_future(self._rollouts.move(rollout.id, time.time()))
                    self._moving[rollout.id] = move
                    move.add_done_callback(partial(self._moved, rollout.id))
            self._share_out()

    def _moved(self, rollout: int, _move: asyncio.Task[None]) -> None:
        del self._moving[rollout]

    def _share_out(self) -> None:
        """Tell the gateways how the load is shared, where that has changed enough to matter."""
        found = self._traffic.shares(self._table.live, time.time())
        shares = {name: round(share, 2) for name, share in found.items() if share >= _SHARE}
        told = self._table.shares
        moved = (abs(shares.get(n, 0) - told.get(n, 0)) for n in shares.keys() | told.keys())
        if any(step >= _SHARE_STEP for step in moved):
            self._publish(shares=shares)

    def _passed(self, version: AdapterVersion, *also: VersionState) -> AdapterRecord:
        with Session(self._engine) as tx:
            record = versions.get(tx, version)
            bases.require_serving(tx, record.manifest.base_digest)
        if record.state not in (VersionState.PASSED, *also):
            raise ConflictError(f"{version} is {record.state}: only a passed version is promoted")
        if (rollout := self._rollouts.of(version.name)) is not None:
            leaves = rollout.status in (Status.WITHDRAWING, Status.DRAINING)
            then = "it is ending, try again in a moment" if leaves else "end it first"
            raise ConflictError(f"a rollout of {version.name} is under way: {then}")
        return record

    def _publish(self, **changes: Any) -> None:
        self._table = replace(self._table, generation=self._table.generation + 1, **changes)
        self._announcement = asyncio.ensure_future(self._announce())

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()
