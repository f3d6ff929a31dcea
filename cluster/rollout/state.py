"""A rollout as it stands, and the steps it may take. Values only; nothing here acts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import reduce
from typing import Any, TypeVar

from cluster.rollout import accounts
from cluster.rollout.decide import Action, Decision, decide
from cluster.rollout.evidence import Evidence, Moments
from cluster.rollout.outcomes import AnswerSource, Side
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.sequential import MIN_OBSERVATIONS
from cluster.rollout.trial import Verdict, verdict
from cluster.types import AdapterVersion

T = TypeVar("T")


class Status(StrEnum):
    """Where a rollout stands. Each is durable before anything is done for it, and doing that twice
    is doing it once."""

    PREPARING = "preparing"
    """The candidate is being loaded and verified; no request is routed to it."""
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
    answered: dict[str, AnswerSource] = field(default_factory=dict)
    """Who gave which answers, by trace id, where users saw them."""
    group: int | None = None
    """Of users, where it is one user's word on an answer."""
    account: str = ""
    """Whose key the requests came with: see `cluster.rollout.accounts`."""


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
    """Of each phase so far, by its number; without those who are set aside."""
    cells: dict[int, dict[str, Evidence]] = field(default_factory=dict)
    """The same by key within tenant: see `cluster.rollout.accounts`."""
    sides: dict[Side, dict[str, dict[int, Moments]]] = field(default_factory=dict)
    """Of this phase's A/B test, where it is one: by cell and group of users."""
    owner: str = ""
    """The tenant whose adapter it is."""
    aside: dict[str, str] = field(default_factory=dict)
    """Tenants and cells whose word alone was against the candidate, and what that was. They get the
    live version, and what they show counts no more."""
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
        taken = {**self.taken, report.source: report.number}
        if accounts.is_aside(self.aside, report.account):
            return replace(self, taken=taken)
        number, phase = report.phase, self.cells.get(report.phase, {})
        known = {cell for cells in self.cells.values() for cell in cells}
        cell = accounts.cell_of(report.account, known)
        mine = phase.get(cell, Evidence()) + report.seen
        return replace(
            self,
            taken=taken,
            evidence={**self.evidence, number: self.evidence.get(number, Evidence()) + report.seen},
            cells={**self.cells, number: {**phase, cell: mine}},
            sides=self._sides_with(report, cell),
        )

    def _sides_with(self, report: Report, cell: str) -> dict[Side, dict[str, dict[int, Moments]]]:
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
                groups = found.get(side, {}).get(cell, {})
                before = groups.get(report.group, Moments())
                with_it = {**groups, report.group: before + said}
                found[side] = {**found.get(side, {}), cell: with_it}
        return found

    def without(self, names: Collection[str]) -> Rollout:
        """As if `names`, of tenants or cells, had shown nothing."""

        def kept(cells: Mapping[str, T]) -> dict[str, T]:
            return {name: of for name, of in cells.items() if not accounts.covers(names, name)}

        cells = {number: kept(phase) for number, phase in self.cells.items()}
        seen = {n: reduce(Evidence.__add__, c.values(), Evidence()) for n, c in cells.items()}
        sides = {side: kept(found) for side, found in self.sides.items()}
        return replace(self, cells=cells, evidence=seen, sides=sides)

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

    def decided(self, now: float, *, agreed: bool = False) -> Decision:
        """What its evidence says it should do next, as long as that rests on no few keys alone.

        Against a candidate, those few are set aside; for it, it is waited for others. Where some
        are set aside, a person promotes: `agreed` is whether one has.
        """
        found = self._judged(now)
        if found.action is Action.HOLD or not found.shown:
            return found
        alike = {number: self.cells.get(number, {}) for number in self.alike}
        for part in accounts.parts(alike, self.owner):
            held = self._held_by(found, part, now)
            if held is not None:
                over = now - self.phase_started > self.plan.give_up_s and not held.aside
                return Decision(Action.ROLL_BACK, held.reason) if over else held
        if found.action is Action.PROMOTE and self.aside and not agreed:
            reason = f"{len(self.aside)} are set aside: it waits for a person to promote it"
            return Decision(Action.HOLD, reason)
        return found

    def _held_by(self, found: Decision, part: frozenset[str], now: float) -> Decision | None:
        """Why `found` does not stand without `part`; None where it does."""
        without = self.without(part)
        rest = without._judged(now)
        verdict = without.verdict
        against = (rest.action is Action.ROLL_BACK and rest.shown) or (
            verdict is not None and verdict.says == "worse"
        )
        if found.action is Action.ROLL_BACK:
            if against:
                return None
            reason = f"set aside {_counted(part)}, which alone show it: {found.reason}"
            return Decision(Action.HOLD, reason, aside=part)
        if against:
            left = {cell for phase in without.cells.values() for cell in phase}
            if accounts.few(left, self.owner):
                reason = f"set aside {_counted(left)}, which alone show it: {rest.reason}"
                return Decision(Action.HOLD, reason, aside=frozenset(left))
            return Decision(Action.HOLD, f"without {_counted(part)}: {rest.reason}")
        foreign = any("/" not in name and name != self.owner for name in part)
        needed = min(MIN_OBSERVATIONS, self.plan.phases[self.phase].min_requests)
        if foreign and without.seen.candidate.errors.n < needed:
            return Decision(Action.HOLD, f"without {_counted(part)} too little was seen")
        return None

    def _judged(self, now: float) -> Decision:
        return decide(
            self.plan,
            self.phase,
            phase_started=self.phase_started,
            evidence=self.alike,
            sides=accounts.clusters(self.sides),
            now=now,
        )

    def agreed(self, now: float) -> Decision:
        """What its evidence says where a person has agreed to the promotion."""
        plan = self.plan.model_copy(update={"at_end": "promote"})
        return replace(self, plan=plan).decided(now, agreed=True)

    @property
    def verdict(self) -> Verdict | None:
        """What the A/B test of this phase has shown, where it is one."""
        trial = self.plan.phases[self.phase].trial
        return None if trial is None else verdict(trial, accounts.clusters(self.sides))

    def as_json(self, *, names: bool = True) -> dict[str, Any]:
        """How it stands, for a reader; without `names`, none of whose word was set aside."""
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
            "aside": self.aside if names else len(self.aside),
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
            return self._set_aside(decision) if decision.aside else self
        return replace(self, phase=self.phase + 1, phase_started=now, sides={})

    def _set_aside(self, decision: Decision) -> Rollout:
        aside = {**self.aside, **dict.fromkeys(sorted(decision.aside), decision.reason)}
        return replace(self.without(decision.aside), aside=aside)

    def withdrawn(self, reason: str, *, at_fault: bool) -> Rollout:
        """On its way out; `at_fault`: for good."""
        return replace(self, status=Status.WITHDRAWING, reason=reason, at_fault=at_fault)

    def finished(self) -> Rollout:
        """Over, the way it was going."""
        over = {Status.DRAINING: Status.PROMOTED, Status.WITHDRAWING: Status.ROLLED_BACK}
        return replace(self, status=over[self.status])


def _counted(names: Collection[str]) -> str:
    """Without the names: tenants read the reasons of their adapters' rollouts."""
    keys = sum("/" in name for name in names)
    tenants = len(names) - keys
    if tenants:
        return "1 tenant" if tenants == 1 else f"{tenants} tenants"
    return "1 key" if keys == 1 else f"{keys} keys"


def chosen(rollout: int, user: str, percent: float) -> bool:
    """Whether `user` is among the `percent` that get the candidate.

    The same user gets the same answer for as long as the percentage does not fall, on every
    gateway; another rollout chooses others.
    """
    drawn = hashlib.sha256(f"{rollout}\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(drawn[:8], "big") / 2**64 * 100 < percent
