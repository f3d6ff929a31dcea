"""Carries rollouts out: each tick does what the state of each asks for, and moves it on.

Every state is durable before it is acted on, so that a control plane that dies at any point goes on
where it was. Owns the order of the effects; what is decided is `cluster.rollout`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from cluster.control.protocol import Fleet, Split
from cluster.control.swap import check_proofs
from cluster.errors import ConflictError, NotFoundError, VerificationError
from cluster.records.adapter import ServedAdapter
from cluster.rollout.decide import Action, Decision
from cluster.rollout.evidence import Evidence, VariantStats
from cluster.rollout.outcomes import Answer
from cluster.rollout.state import Report, Rollout, Status
from cluster.types import AdapterVersion

logger = logging.getLogger(__name__)

_DRAIN_S = 30.0
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 60.0
#: For how long a candidate is tried again that a replica could not say anything of.
_PREPARING_S = 900.0
_FEEDBACK = "feedback"
"""The source of reports that are made here, of what users said."""


class Store(Protocol):
    """Where rollouts are kept. Each call is one transaction, done when it returns."""

    def active(self) -> list[Rollout]:
        """The rollouts that are not over."""
        ...

    def save(self, rollout: Rollout) -> None:
        """Keep `rollout`; one that is withdrawn for a fault of its candidate has that refused."""
        ...

    def promote(self, rollout: Rollout) -> None:
        """Keep `rollout`, its candidate being live from now on and its baseline no longer."""
        ...

    def note(self, report: Report) -> None:
        """Keep which answers `report` is of, until its rollout is over."""
        ...

    def answer(self, trace_id: str) -> Answer | None:
        """An answer that was noted, if it still is."""
        ...

    def judged(self, trace_id: str, answer: Answer) -> None:
        """Keep what is known of an answer that was noted."""
        ...

    def forget(self, rollout: Rollout) -> bool:
        """Forget answers of `rollout`, as many as takes no time; whether some are left."""
        ...

    def killed(self) -> frozenset[str]:
        """The adapters that are switched off."""
        ...

    def served(self, version: AdapterVersion) -> ServedAdapter:
        """A version as the engines know it."""
        ...


class RolloutController:
    """The rollouts that are not over. `publish` tells the gateways what `splits` says now."""

    def __init__(self, store: Store, fleet: Fleet, publish: Callable[[], None]) -> None:
        self._store, self._fleet, self._publish = store, fleet, publish
        self._active = {rollout.id: rollout for rollout in store.active()}
        self._kept: dict[int, Rollout] = {}
        """As each was saved last."""
        self._again: dict[int, tuple[float, float]] = {}
        """When a candidate that was not proved is tried again, and how long that is after the last
        time: loading it holds engines up."""

    @property
    def active(self) -> list[Rollout]:
        """The rollouts that are not over, oldest first."""
        return [self._active[key] for key in sorted(self._active)]

    @property
    def versions(self) -> set[AdapterVersion]:
        """Every version that a rollout may still ask for."""
        both = ((r.candidate, r.baseline) for r in self._active.values())
        return {version for pair in both for version in pair if version is not None}

    def of(self, adapter: str) -> Rollout | None:
        """The adapter's rollout that is not over."""
        return next((r for r in self._active.values() if r.adapter == adapter), None)

    def splits(self) -> dict[str, Split]:
        """Whom the gateways send to a candidate, by adapter."""
        return {
            rollout.adapter: Split(
                rollout.id,
                rollout.phase,
                self._store.served(rollout.candidate),
                rollout.plan.phases[rollout.phase].percent,
                rollout.plan.phases[rollout.phase].shadow,
                frozenset(rollout.aside),
            )
            for rollout in self._active.values()
            if rollout.status == Status.RUNNING
        }

    def wanted(self) -> list[ServedAdapter]:
        """The candidates that engines have to hold."""
        held = (Status.PREPARING, Status.RUNNING)
        return [self._store.served(r.candidate) for r in self._active.values() if r.status in held]

    def add(self, rollout: Rollout) -> None:
        """Take on a rollout that the store holds already."""
        self._active[rollout.id] = rollout

    def take(self, *reports: Report) -> None:
        """Count what a gateway saw; which answers that is of is kept in one transaction."""
        taken: dict[int, Rollout] = {}
        answered: dict[tuple[int, int], Report] = {}
        for report in reports:
            rollout = taken.get(report.rollout) or self._active.get(report.rollout)
            if rollout is None or (after := rollout.with_report(report)) is rollout:
                continue
            taken[rollout.id] = after
            if report.answered:
                key = (report.rollout, report.phase)
                before = answered[key].answered if key in answered else {}
                answered[key] = replace(report, answered={**before, **report.answered})
        for report in answered.values():
            self._store.note(report)
        self._active.update(taken)

    def judge(self, trace_id: str, version: AdapterVersion, found: VariantStats) -> bool:
        """Count what became of an answer of `version`; whether anything of it was new."""
        rollout = self.of(version.name)
        if rollout is None or version not in (rollout.candidate, rollout.baseline):
            return False
        side = "candidate" if version == rollout.candidate else "baseline"
        answer = self._store.answer(trace_id)
        if answer is None or (answer.rollout, answer.side) != (rollout.id, side):
            return False
        judged = answer.judged(found)
        if judged is None:
            return False
        answer, new = judged
        number = rollout.taken.get(_FEEDBACK, -1) + 1
        seen = Evidence(**{side: new})
        of = (rollout.id, answer.phase, seen)
        report = Report(_FEEDBACK, number, *of, group=answer.group, account=answer.account)
        if (after := rollout.with_report(report)) is rollout:
            return False
        # First: should this process die now, a vote is lost rather than given twice.
        self._store.judged(trace_id, answer)
        self._active[rollout.id] = after
        return True

    def withdraw(self, adapter: str, reason: str) -> bool:
        """End the adapter's rollout, durably; whether there was one to end. Its candidate may be
        tried again."""
        rollout = self.of(adapter)
        if rollout is None or rollout.status not in (Status.PREPARING, Status.RUNNING):
            return False
        self._keep(rollout.withdrawn(reason, at_fault=False))
        self._publish()
        return True

    def promote(self, adapter: str, who: str, now: float) -> None:
        """Promote the adapter's candidate, a person having agreed.

        Raises:
            NotFoundError: no rollout of it is under way.
            ConflictError: it has not shown what it had to.
        """
        rollout = self.of(adapter)
        if rollout is None:
            raise NotFoundError(f"no rollout of {adapter[:64]!r} is under way")
        if rollout.status != Status.RUNNING:
            raise ConflictError(f"the rollout of {rollout.candidate} is {rollout.status}")
        decision = rollout.agreed(now)
        if decision.action is not Action.PROMOTE:
            raise ConflictError(f"{rollout.candidate} is not to be promoted yet: {decision.reason}")
        self._carry_out(rollout, replace(decision, reason=f"{who}: {decision.reason}"), now)

    async def tick(self, now: float) -> None:
        """Move each rollout on by what it needs, one after another."""
        for rollout in self.active:
            await self.move(rollout.id, now)

    async def move(self, number: int, now: float) -> None:
        """Move one rollout on by what it needs; its faults are no matter to the others."""
        # As it is now: it may have been ended since it was listed.
        rollout = self._active.get(number)
        if rollout is None:
            return
        try:
            await self._move(rollout, now)
        except Exception:  # tried again with the next tick, from the state it is in
            logger.exception("rollout %d of %s is stuck", rollout.id, rollout.candidate)

    async def _move(self, rollout: Rollout, now: float) -> None:
        held = (Status.PREPARING, Status.RUNNING)
        if rollout.status in held and rollout.adapter in self._store.killed():
            self.withdraw(rollout.adapter, "the adapter was switched off")
        elif rollout.status == Status.PREPARING:
            await self._prepare(rollout, now)
        elif rollout.status == Status.RUNNING:
            self._judge(rollout, now)
        else:
            await self._clear(rollout)

    async def _prepare(self, rollout: Rollout, now: float) -> None:
        if now < self._again.get(rollout.id, (0.0, 0.0))[0]:
            return
        candidate = self._store.served(rollout.candidate)
        try:
            check_proofs(candidate, await self._fleet.prepare(candidate))
        except Exception as error:  # whatever the fleet met, the live version serves on
            if self._still(rollout):
                _, waited = self._again.get(rollout.id, (0.0, 0.0))
                wait = min(max(2 * waited, _AGAIN_S), _AGAIN_AT_MOST_S)
                self._again[rollout.id] = (now + wait, wait)
                self._keep(_unproved(rollout, error, now))
            return
        if self._still(rollout):
            self._keep(rollout.begun(now))
            self._publish()

    def _judge(self, rollout: Rollout, now: float) -> None:
        self._carry_out(rollout, rollout.decided(now), now)

    def _carry_out(self, rollout: Rollout, decision: Decision, now: float) -> None:
        following = rollout.after(decision, now)
        if decision.action is Action.PROMOTE:
            self._store.promote(following)
            self._active[following.id] = following
        else:
            self._keep(following)
        if decision.action is not Action.HOLD or decision.aside:
            logger.info(
                "rollout of %s: %s, %s", rollout.candidate, decision.action, decision.reason
            )
            self._publish()

    async def _clear(self, rollout: Rollout) -> None:
        promoted = rollout.status == Status.DRAINING
        leaving = rollout.baseline if promoted else rollout.candidate
        if leaving is not None:
            int_id = self._store.served(leaving).int_id
            # Its requests end first; a replica that does not confirm unloads it later.
            await self._fleet.retire(int_id, _DRAIN_S)
        while self._store.forget(rollout):  # noqa: ASYNC110 (nothing signals that it is done)
            await asyncio.sleep(0)  # others are served between
        finished = rollout.finished()
        self._store.save(finished)
        del self._active[finished.id]
        self._again.pop(finished.id, None)
        self._kept.pop(finished.id, None)

    def _still(self, rollout: Rollout) -> bool:
        """Whether the rollout was not ended during a wait."""
        found = self._active.get(rollout.id)
        return found is not None and found.status == rollout.status

    def _keep(self, rollout: Rollout) -> None:
        if self._kept.get(rollout.id) is not rollout:
            # Every second; where nothing was seen since, there is nothing to keep.
            self._store.save(rollout)
            self._kept[rollout.id] = rollout
        self._active[rollout.id] = rollout


def _unproved(rollout: Rollout, error: Exception, now: float) -> Rollout:
    """A rollout whose candidate is not held by every replica yet: it is refused where it is not
    what its trainer made, and tried again where a replica restarts, has no room, or does not see
    its files."""
    said = f"not proved on every replica: {error}"[:500]
    if isinstance(error, VerificationError):
        return rollout.withdrawn(said, at_fault=True)
    if now - rollout.phase_started > min(_PREPARING_S, rollout.plan.give_up_s):
        return rollout.withdrawn(said, at_fault=False)
    return replace(rollout, reason=f"tried again: {said}")
