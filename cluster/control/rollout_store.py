"""Rollouts in the registry: every move one transaction, its event in the audit chain."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from cluster.errors import ConflictError
from cluster.records.adapter import AdapterRecord, ServedAdapter
from cluster.registry import access, answers, events, versions
from cluster.registry.schema import Adapter, RolloutRow
from cluster.rollout.outcomes import Answer, Side
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.state import Report, Rollout, Status
from cluster.types import AdapterVersion, VersionState

_STATE: TypeAdapter[Rollout] = TypeAdapter(Rollout)
_OVER = [status.value for status in Status if status.over]
_CONTROLLER = "rollout controller"

Change = Callable[[], AbstractContextManager[Session]]


def served(record: AdapterRecord) -> ServedAdapter:
    """A registered version as the engines know it."""
    return ServedAdapter(
        record.id.name,
        record.id.version,
        record.int_id,
        record.path,
        record.digest,
        record.manifest.golden,
    )


class RolloutStore:
    """Implements `cluster.control.rollouts.Store`. `read` and `change` open transactions; `off` are
    the adapters that are switched off and not on record as such."""

    def __init__(
        self, read: Callable[[], Session], change: Change, off: Callable[[], frozenset[str]]
    ) -> None:
        self._read, self._change, self._off = read, change, off
        self._served: dict[AdapterVersion, ServedAdapter] = {}

    def begin(
        self,
        candidate: AdapterVersion,
        baseline: AdapterVersion | None,
        plan: RolloutPlan,
        *,
        actor: str,
        now: float,
    ) -> Rollout:
        """Enter a new rollout; the caller sees to it that the adapter has no other."""
        with self._change() as tx:
            owner = access.owners(tx).get(candidate.name, "")
            draft = Rollout(0, candidate, baseline, plan, phase_started=now, owner=owner)
            row = RolloutRow(
                adapter=candidate.name,
                candidate=versions.get(tx, candidate).int_id,
                status=draft.status,
                state=_dump(draft),
                created_at=now,
                updated_at=now,
            )
            tx.add(row)
            tx.flush()
            rollout = replace(draft, id=row.rollout_id)
            row.state = _dump(rollout)
            detail = {"rollout": rollout.id, "from": str(baseline) if baseline else None}
            events.note(tx, "rollout.started", str(candidate), detail, actor=actor, now=now)
        return rollout

    def active(self) -> list[Rollout]:
        """The rollouts that are not over."""
        with self._read() as tx:
            return _active(tx)

    def listed(self, limit: int, owner: str | None = None) -> list[Rollout]:
        """The newest rollouts, newest first; of one tenant's adapters, or of all."""
        newest = select(RolloutRow).order_by(RolloutRow.rollout_id.desc()).limit(limit)
        if owner is not None:
            mine = Adapter.owner == owner
            newest = newest.join(Adapter, Adapter.name == RolloutRow.adapter).where(mine)
        with self._read() as tx:
            return [_STATE.validate_python(row.state) for row in tx.scalars(newest)]

    def save(self, rollout: Rollout) -> None:
        """Keep `rollout`; one that is withdrawn for a fault of its candidate has that refused."""
        now = time.time()
        with self._change() as tx:
            moved = self._write(tx, rollout, now)
            if moved and rollout.status == Status.WITHDRAWING and rollout.at_fault:
                candidate, rejected = rollout.candidate, VersionState.REJECTED
                versions.set_state(
                    tx, candidate, rejected, rollout.reason, actor=_CONTROLLER, now=now
                )

    def promote(self, rollout: Rollout) -> None:
        """Keep `rollout`, its candidate being live from now on and its baseline no longer."""
        now = time.time()
        with self._change() as tx:
            if rollout.adapter in access.killed(tx) | self._off():
                raise ConflictError(f"adapter {rollout.adapter!r} is switched off")
            self._write(tx, rollout, now)
            moves = [(rollout.candidate, VersionState.LIVE)]
            if rollout.baseline is not None:
                moves.insert(0, (rollout.baseline, VersionState.RETIRED))
            for version, state in moves:
                versions.set_state(tx, version, state, rollout.reason, actor=_CONTROLLER, now=now)

    def appeal(self, version: AdapterVersion, reason: str, actor: str) -> None:
        """Let a version that its rollout refused be tried again.

        Raises:
            ConflictError: it is not refused, or was by the gate and not by a rollout.
        """
        with self._change() as tx:
            record = versions.get(tx, version)
            if record.state != VersionState.REJECTED:
                raise ConflictError(f"{version} is {record.state}: there is nothing to appeal")
            newest = select(RolloutRow).where(RolloutRow.candidate == record.int_id)
            row = tx.scalars(newest.order_by(RolloutRow.rollout_id.desc()).limit(1)).first()
            refused = row is not None and row.state["reason"] == record.reason
            if row is None or not refused or not row.state["at_fault"]:
                raise ConflictError(f"{version} was refused by the gate: evaluate it again")
            if row.status not in _OVER:
                raise ConflictError(f"the rollout of {version} is still leaving: try again")
            now, passed = time.time(), VersionState.PASSED
            versions.set_state(tx, version, passed, reason, actor=actor, now=now)
            detail = {"reason": reason, "rollout": row.rollout_id, "refused": record.reason}
            events.note(tx, "version.appealed", str(version), detail, actor=actor, now=now)

    def note(self, report: Report) -> None:
        """Keep which answers `report` is of, until its rollout is over."""
        with self._change() as tx:
            answered = report.answered.items()
            given = {key: (one.side, one.group, one.account) for key, one in answered}
            answers.note(tx, report.rollout, report.phase, given)

    def answer(self, trace_id: str) -> Answer | None:
        """An answer that was noted, if it still is."""
        with self._read() as tx:
            found = answers.get(tx, trace_id)
            if found is None:
                return None
            side: Side = "candidate" if found.side == "candidate" else "baseline"
            counted = frozenset(found.counted)
            where = (found.rollout_id, found.phase, side, found.user_group, found.account)
            return Answer(*where, counted)

    def judged(self, trace_id: str, answer: Answer) -> None:
        """Keep what is known of an answer that was noted."""
        with self._change() as tx:
            answers.judged(tx, trace_id, answer.counted)

    def forget(self, rollout: Rollout) -> bool:
        """Forget answers of `rollout`, as many as takes no time; whether some are left."""
        with self._change() as tx:
            return answers.forget(tx, rollout.id)

    def killed(self) -> frozenset[str]:
        """The adapters that are switched off."""
        with self._read() as tx:
            return access.killed(tx) | self._off()

    def served(self, version: AdapterVersion) -> ServedAdapter:
        """A version as the engines know it; versions do not change, so it is read once."""
        if version not in self._served:
            with self._read() as tx:
                self.know(versions.get(tx, version))
        return self._served[version]

    def know(self, record: AdapterRecord) -> ServedAdapter:
        """A version that was read already, as the engines know it."""
        self._served[record.id] = found = served(record)
        return found

    def retain(self, wanted: set[AdapterVersion]) -> None:
        """Evict every version but `wanted` from memory."""
        self._served = {v: found for v, found in self._served.items() if v in wanted}

    @staticmethod
    def _write(tx: Session, rollout: Rollout, now: float) -> bool:
        """Whether it moved to another status or phase, which is an event."""
        row = tx.get_one(RolloutRow, rollout.id)
        # Of the state before only what tells a move: it may be long, and is kept every second.
        before = (row.state["status"], row.state["phase"])
        aside = {
            name: why
            for name, why in rollout.aside.items()
            if name not in row.state.get("aside", {})
        }
        row.status, row.state, row.updated_at = rollout.status, _dump(rollout), now
        subject, moved = str(rollout.candidate), before != (rollout.status, rollout.phase)
        if moved:
            detail = {"rollout": rollout.id, "phase": rollout.phase, "reason": rollout.reason}
            kind = f"rollout.{rollout.status}".replace(" ", "_")
            events.note(tx, kind, subject, detail, actor=_CONTROLLER, now=now)
        if aside:
            detail = {"rollout": rollout.id, "aside": aside}
            events.note(tx, "rollout.set_aside", subject, detail, actor=_CONTROLLER, now=now)
        return moved


def _active(tx: Session) -> list[Rollout]:
    rows = tx.scalars(select(RolloutRow).where(RolloutRow.status.not_in(_OVER)))
    return [_STATE.validate_python(row.state) for row in rows]


def _dump(rollout: Rollout) -> dict[str, Any]:
    found: dict[str, Any] = _STATE.dump_python(rollout, mode="json")
    return found
