"""A rollout as it stands, and the steps it may take. Values only; nothing here acts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import reduce
from typing import Any

from cluster.rollout.decide import Action, Decision, decide
from cluster.rollout.evidence import Evidence, Moments
from cluster.rollout.outcomes import Given, Side
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.trial import Verdict, verdict
from cluster.types import AdapterVersion


class Status(StrEnum):
    """Where a rollout stands. Each is durable before anything is done for it, and doing that twice
    is doing it once."""

    PREPARING = "preparing"
    """The candidate is being loaded and proved; nobody is routed to it."""
    RUNNING = "running"
    DRAINING = "draining"
    """Promoted: the former version is leaving the engines."""
    WITHDRAWING = "withdrawing"
    """Rolled back: the candidate is leaving the engines."""
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self in (Status.PROMOTED, Status.ROLLED_BACK)


@dataclass(frozen=True)
class Report:
    """What one gateway saw of one phase since its last report."""

    source: str
    number: int
    """Rises with each report of a source; one that comes twice counts once."""
    rollout: int
    phase: int
    seen: Evidence
    answered: dict[str, Given] = field(default_factory=dict)
    """Who gave which answers, by trace id, where users saw them."""
    group: int | None = None
    """Of users, where it is one user's word on an answer."""


@dataclass(frozen=True)
class Rollout:
    """One candidate on its way to the users."""

    id: int
    candidate: AdapterVersion
    baseline: AdapterVersion | None
    plan: RolloutPlan
    status: Status = Status.PREPARING
    phase: int = 0
    phase_started: float = 0.0
    """When it was asked for, until its first phase."""
    evidence: dict[int, Evidence] = field(default_factory=dict)
    """Of each phase so far, by its number."""
    sides: dict[Side, dict[int, Moments]] = field(default_factory=dict)
    """Of this phase's A/B test, where it is one: see `cluster.rollout.trial.Sides`."""
    taken: dict[str, int] = field(default_factory=dict)
    """The number of the last report of each source."""
    reason: str = ""
    at_fault: bool = True
    """Of one that is withdrawn: whether its candidate is refused for good. What a person ends, or
    a fault of something else, may be begun again."""

    @property
    def adapter(self) -> str:
        """The adapter's name."""
        return self.candidate.name

    def begun(self, now: float) -> Rollout:
        """In its first phase: the candidate was proved."""
        return replace(self, status=Status.RUNNING, phase=0, phase_started=now, reason="")

    def with_report(self, report: Report) -> Rollout:
        """With what a gateway saw; unchanged by a report that was taken before or is of another."""
        if (
            self.status != Status.RUNNING
            or not 0 <= report.phase <= self.phase
            or report.number <= self.taken.get(report.source, -1)
        ):
            return self
        seen = self.evidence.get(report.phase, Evidence()) + report.seen
        return replace(
            self,
            taken={**self.taken, report.source: report.number},
            evidence={**self.evidence, report.phase: seen},
            sides=self._sides_with(report),
        )

    def _sides_with(self, report: Report) -> dict[Side, dict[int, Moments]]:
        trial = self.plan.phases[self.phase].trial
        if trial is None or report.group is None or report.phase != self.phase:
            return self.sides
        sides: dict[Side, Moments] = {
            "baseline": getattr(report.seen.baseline, trial.outcome),
            "candidate": getattr(report.seen.candidate, trial.outcome),
        }
        found = dict(self.sides)
        for side, said in sides.items():
            if said.n:
                groups = found.get(side, {})
                before = groups.get(report.group, Moments())
                found[side] = {**groups, report.group: before + said}
        return found

    @property
    def seen(self) -> Evidence:
        """The evidence of this phase."""
        return self.evidence.get(self.phase, Evidence())

    @property
    def alike(self) -> dict[int, Evidence]:
        """The evidence of the phases of this one's kind: what a shadow shows says nothing of
        answers that users see, and wait for."""
        phases = self.plan.phases
        kind = phases[self.phase].shadow
        return {n: seen for n, seen in self.evidence.items() if phases[n].shadow == kind}

    @property
    def whole(self) -> Evidence:
        """All of that together, for a reader: shares changed between phases."""
        return reduce(Evidence.__add__, self.alike.values(), Evidence())

    def decided(self, now: float) -> Decision:
        """What its evidence says it should do next."""
        return decide(
            self.plan,
            self.phase,
            phase_started=self.phase_started,
            evidence=self.alike,
            sides=self.sides,
            now=now,
        )

    def agreed(self, now: float) -> Decision:
        """What its evidence says where a person has agreed to the promotion."""
        plan = self.plan.model_copy(update={"at_end": "promote"})
        return replace(self, plan=plan).decided(now)

    @property
    def verdict(self) -> Verdict | None:
        """What the A/B test of this phase has shown, where it is one."""
        trial = self.plan.phases[self.phase].trial
        return None if trial is None else verdict(trial, self.sides)

    def as_json(self) -> dict[str, Any]:
        """How it stands, for a reader."""
        phase = self.plan.phases[self.phase]
        verdict = self.verdict
        return {
            "id": self.id,
            "candidate": str(self.candidate),
            "baseline": str(self.baseline) if self.baseline else None,
            "status": self.status,
            "phase": self.phase,
            "percent": phase.percent,
            "shadow": phase.shadow,
            "reason": self.reason,
            "seen": {
                "baseline": self.whole.baseline.as_json(),
                "candidate": self.whole.candidate.as_json(),
            },
            "verdict": verdict.as_json() if verdict else None,
        }

    def after(self, decision: Decision, now: float) -> Rollout:
        """Where `decision` takes a running rollout."""
        if decision.action is Action.ROLL_BACK:
            return self.withdrawn(decision.reason, at_fault=decision.at_fault)
        if decision.action is Action.PROMOTE:
            return replace(self, status=Status.DRAINING, reason=decision.reason)
        if decision.action is Action.HOLD:
            return self
        return replace(self, phase=self.phase + 1, phase_started=now, sides={})

    def withdrawn(self, reason: str, *, at_fault: bool) -> Rollout:
        """On its way out; `at_fault`: for good."""
        return replace(self, status=Status.WITHDRAWING, reason=reason, at_fault=at_fault)

    def finished(self) -> Rollout:
        """Over, the way it was going."""
        over = {Status.DRAINING: Status.PROMOTED, Status.WITHDRAWING: Status.ROLLED_BACK}
        return replace(self, status=over[self.status])


def chosen(rollout: int, user: str, percent: float) -> bool:
    """Whether `user` is among the `percent` that get the candidate.

    The same user gets the same answer for as long as the percentage does not fall, on every
    gateway; another rollout chooses others.
    """
    drawn = hashlib.sha256(f"{rollout}\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(drawn[:8], "big") / 2**64 * 100 < percent
