"""What a rollout does next. Pure: evidence and the time in, a decision and its reason out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.rollout.evidence import Evidence
from cluster.rollout.plan import Guardrails, RolloutPlan
from cluster.rollout.sequential import difference, radius
from cluster.rollout.trial import verdict


class Action(StrEnum):
    """What to do."""

    HOLD = "hold"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Decision:
    """An action and why, for the person who asks."""

    action: Action
    reason: str
    at_fault: bool = False
    """Whether a candidate that is rolled back has shown itself to be worse."""


@dataclass(frozen=True)
class _Worse:
    """How much worse the candidate is by one measure, and how much it may be."""

    what: str
    at_least: float
    estimate: float
    allowed: float


def decide(
    plan: RolloutPlan,
    number: int,
    *,
    phase_started: float,
    seen: Evidence,
    whole: Evidence,
    now: float,
) -> Decision:
    """The next step of a rollout in phase `number`.

    `seen` is the evidence of this phase, `whole` of all phases of its kind, shadow or not: what
    only all of it can tell must not be forgotten from phase to phase.
    """
    phase = plan.phases[number]
    judged = _worse(plan.guardrails, whole)
    for found in judged:
        if found.at_least > found.allowed:
            return Decision(
                Action.ROLL_BACK,
                f"{found.what}: worse by at least {found.at_least:.3g}, "
                f"{found.allowed:.3g} allowed",
                at_fault=True,
            )
    requests, waited = seen.candidate.errors.n, now - phase_started
    if requests < phase.min_requests or waited < phase.min_seconds:
        if waited > plan.give_up_s:
            reason = f"only {requests} of {phase.min_requests} requests in {waited:.0f} s"
            return Decision(Action.ROLL_BACK, reason)
        return Decision(Action.HOLD, f"{requests} of {phase.min_requests} requests")
    for found in judged:
        if found.estimate > found.allowed:
            if waited > plan.give_up_s:
                reason = f"{found.what}: it does not come right"
                return Decision(Action.ROLL_BACK, reason, at_fault=True)
            return Decision(Action.HOLD, f"{found.what}: looks worse by {found.estimate:.3g}")
    shown = f"{requests} requests within the guardrails"
    if phase.trial is not None:
        test = verdict(phase.trial, seen)
        over = waited > plan.give_up_s
        if test.says == "undecided" and not over:
            return Decision(Action.HOLD, str(test))
        given_up = test.says == "undecided" and phase.trial.undecided == "roll back"
        if test.says == "worse" or given_up:
            return Decision(Action.ROLL_BACK, str(test), at_fault=test.says == "worse")
        shown = str(test)
    if number + 1 < len(plan.phases):
        return Decision(Action.ADVANCE, shown)
    if plan.at_end == "wait":
        return Decision(Action.HOLD, f"it waits for a person to promote it ({shown})")
    return Decision(Action.PROMOTE, shown)


def _worse(limits: Guardrails, seen: Evidence) -> list[_Worse]:
    """Each measure of which both versions have something to show, and errors in any case."""
    old, new = seen.baseline, seen.candidate
    alpha = limits.alpha / 5
    errors = difference(old.errors, new.errors, alpha, within=(0, 1))
    disliked = difference(old.disliked, new.disliked, alpha, within=(0, 1))
    escalated = difference(old.escalated, new.escalated, alpha, within=(0, 1))
    slower = difference(old.latency_ms, new.latency_ms, alpha)
    surer = difference(old.confidence, new.confidence, alpha)
    slack = (limits.latency_ratio - 1) * old.latency_ms.mean
    rows = (
        (old.errors, new.errors, "error rate", errors.low, limits.error_rate),
        (old.disliked, new.disliked, "disliked answers", disliked.low, limits.disliked),
        (old.escalated, new.escalated, "escalations", escalated.low, limits.escalated),
        (old.latency_ms, new.latency_ms, "latency in ms", slower.low, slack),
    )
    found = [
        _Worse(what, low, theirs.mean - ours.mean, allowed)
        for ours, theirs, what, low, allowed in rows
        if ours.n and theirs.n
    ]
    if new.errors.n and not old.errors.n:  # all users have the candidate: what fails is its own
        failing = new.errors.mean - radius(new.errors, alpha, within=(0, 1))
        found.append(_Worse("error rate", failing, new.errors.mean, limits.error_rate))
    if old.confidence.n and new.confidence.n:
        lost = old.confidence.mean - new.confidence.mean
        found.append(_Worse("confidence", -surer.high, lost, limits.confidence))
    return found
