"""What a rollout does next. Pure: evidence and the time in, a decision and its reason out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import attrgetter

from cluster.rollout.evidence import Evidence, Moments
from cluster.rollout.groups import FEWEST
from cluster.rollout.plan import RolloutPlan
from cluster.rollout.sequential import Range, compared, radius
from cluster.rollout.trial import Sides, verdict


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
    own: bool = True
    """Whether it is the candidate's own doing for sure; few users differ by themselves."""


def decide(
    plan: RolloutPlan,
    number: int,
    *,
    phase_started: float,
    evidence: Mapping[int, Evidence],
    sides: Sides,
    now: float,
) -> Decision:
    """The next step of a rollout in phase `number`.

    `evidence` is that of each phase of its kind, shadow or not, by the phase's number: what only
    all of it can tell must not be forgotten from phase to phase. `sides` are the outcomes of this
    phase's A/B test by groups of users.
    """
    phase, last = plan.phases[number], number + 1 == len(plan.phases)
    judged = _worse(plan, evidence)
    for found in judged:
        if found.at_least > found.allowed:
            return Decision(
                Action.ROLL_BACK,
                f"{found.what}: worse by at least {found.at_least:.3g}, "
                f"{found.allowed:.3g} allowed" + ("" if found.own else ", by few users"),
                at_fault=found.own,
            )
    seen = evidence.get(number, Evidence())
    requests, waited = seen.candidate.errors.n, now - phase_started
    over = waited > plan.give_up_s
    if requests < phase.min_requests or waited < phase.min_seconds:
        if over:
            reason = f"only {requests} of {phase.min_requests} requests in {waited:.0f} s"
            return Decision(Action.ROLL_BACK, reason)
        return Decision(Action.HOLD, f"{requests} of {phase.min_requests} requests")
    for found in judged:
        if found.estimate > found.allowed:
            # Where a person decides, how long it has been says nothing.
            if over and not (last and plan.at_end == "wait"):
                return Decision(Action.ROLL_BACK, f"{found.what}: it does not come right")
            return Decision(Action.HOLD, f"{found.what}: looks worse by {found.estimate:.3g}")
    shown = f"{requests} requests within the guardrails"
    if phase.trial is not None:
        test = verdict(phase.trial, sides)
        if test.says == "undecided" and not over:
            return Decision(Action.HOLD, str(test))
        given_up = test.says == "undecided" and phase.trial.undecided == "roll back"
        if test.says == "worse" or given_up:
            return Decision(Action.ROLL_BACK, str(test), at_fault=test.says == "worse")
        shown = str(test)
    if not last:
        return Decision(Action.ADVANCE, shown)
    if plan.at_end == "wait":
        return Decision(Action.HOLD, f"it waits for a person to promote it ({shown})")
    return Decision(Action.PROMOTE, shown)


_RATE: Range = (0, 1)


def _worse(plan: RolloutPlan, evidence: Mapping[int, Evidence]) -> list[_Worse]:
    """Each measure of which both versions have enough to show, and errors in any case."""
    limits = plan.guardrails
    alpha, found = limits.alpha / 5, list[_Worse]()
    whole = reduce(Evidence.__add__, evidence.values(), Evidence())
    groups = min(arm.groups.bit_count() for arm in (whole.baseline, whole.candidate))
    # In a shadow both answer the same requests.
    own = groups >= FEWEST or all(plan.phases[number].shadow for number in evidence)

    def pairs(measure: str) -> list[tuple[Moments, Moments]]:
        of = attrgetter(measure)
        return [(of(one.baseline), of(one.candidate)) for one in evidence.values()]

    for what, measure, allowed in (
        ("error rate", "errors", limits.error_rate),
        ("disliked answers", "disliked", limits.disliked),
        ("escalations", "escalated", limits.escalated),
    ):
        if (rate := compared(pairs(measure), alpha, within=_RATE)) is not None:
            mine = own or measure == "errors"
            found.append(_Worse(what, rate.interval.low, rate.estimate, allowed, mine))
    if (took := compared(pairs("latency_ms"), alpha)) is not None:
        slack = (limits.latency_ratio - 1) * took.baseline
        found.append(_Worse("latency in ms", took.interval.low, took.estimate, slack, own))
    if (sure := compared(pairs("confidence"), alpha)) is not None:
        lost = -sure.interval.high
        found.append(_Worse("confidence", lost, -sure.estimate, limits.confidence, own))
    for number, one in evidence.items():
        shared = plan.phases[number].percent < 100 and one.baseline.errors.n
        if shared or plan.phases[number].shadow:
            continue
        # All users there are have the candidate: what fails is its own.
        errors = one.candidate.errors
        failing = errors.mean - radius(errors, alpha, within=_RATE)
        found.append(_Worse("error rate", failing, errors.mean, limits.error_rate))
    return found
