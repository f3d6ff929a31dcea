"""What a rollout does next. Pure: evidence and the time in, a decision and its reason out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from math import inf
from operator import attrgetter

from cluster.rollout.evidence import Evidence, Moments
from cluster.rollout.plan import Guardrails, RolloutPlan
from cluster.rollout.sequential import (
    FEWEST_GROUPS,
    MIN_OBSERVATIONS,
    Range,
    compared,
    radius,
    rough_radius,
)
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
    shown: bool = False
    """Whether it rests on what was seen, and not only on how long that took."""
    aside: frozenset[str] = frozenset()
    """Cells of evidence to set aside: see `cluster.rollout.accounts`."""


@dataclass(frozen=True)
class _Regression:
    """How much worse the candidate is by one measure, and how much it may be."""

    measure: str
    at_least: float
    """Lower bound of the confidence sequence."""
    estimate: float
    allowed: float
    attributable: bool = True
    """False with fewer than twenty groups of users, or without baseline traffic."""


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
    judged = _regressions(plan, number, evidence)
    for found in judged:
        if found.at_least > found.allowed:
            return Decision(
                Action.ROLL_BACK,
                f"{found.measure}: worse by at least {found.at_least:.3g}, "
                f"{found.allowed:.3g} allowed"
                + ("" if found.attributable else ", not attributable to the candidate"),
                at_fault=found.attributable,
                shown=True,
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
                return Decision(
                    Action.ROLL_BACK, f"{found.measure}: it did not recover", shown=True
                )
            return Decision(Action.HOLD, f"{found.measure}: looks worse by {found.estimate:.3g}")
    shown = f"{requests} requests within the guardrails"
    if phase.trial is not None:
        test = verdict(phase.trial, sides)
        if test.says == "undecided" and not over:
            return Decision(Action.HOLD, str(test))
        given_up = test.says == "undecided" and phase.trial.undecided == "roll back"
        if test.says == "worse" or given_up:
            return Decision(
                Action.ROLL_BACK, str(test), at_fault=test.says == "worse", shown=not given_up
            )
        shown = str(test)
    if not last:
        return Decision(Action.ADVANCE, shown, shown=True)
    if plan.at_end == "wait":
        return Decision(Action.HOLD, f"it waits for a person to promote it ({shown})")
    return Decision(Action.PROMOTE, shown, shown=True)


_RATE: Range = (0, 1)


def _regressions(
    plan: RolloutPlan, number: int, evidence: Mapping[int, Evidence]
) -> list[_Regression]:
    """Every measure that both versions have data on, compared phase by phase."""
    limits = plan.guardrails
    alpha, found = limits.alpha / 5, list[_Regression]()
    whole = reduce(Evidence.__add__, evidence.values(), Evidence())
    groups = min(arm.groups.bit_count() for arm in (whole.baseline, whole.candidate))
    # In a shadow both answer the same requests.
    attributable = groups >= FEWEST_GROUPS or plan.phases[number].shadow

    def pairs(measure: str) -> list[tuple[Moments, Moments]]:
        of = attrgetter(measure)
        return [(of(one.baseline), of(one.candidate)) for one in evidence.values()]

    for what, measure, allowed in (
        ("error rate", "errors", limits.error_rate),
        ("disliked answers", "disliked", limits.disliked),
        ("escalations", "escalated", limits.escalated),
    ):
        if (rate := compared(pairs(measure), alpha, within=_RATE)) is not None:
            certain = attributable or measure == "errors"
            found.append(_Regression(what, rate.interval.low, rate.estimate, allowed, certain))
    if (took := compared(pairs("latency_ms"), alpha)) is not None:
        slack = (limits.latency_ratio - 1) * took.baseline
        found.append(
            _Regression("latency in ms", took.interval.low, took.estimate, slack, attributable)
        )
    if (sure := compared(pairs("confidence"), alpha)) is not None:
        lost = -sure.interval.high
        found.append(
            _Regression("confidence", lost, -sure.estimate, limits.confidence, attributable)
        )
    found += _small_sample_checks(limits, evidence.get(number, Evidence()), alpha)
    return found + _no_baseline_checks(plan, evidence, whole.baseline.errors, alpha)


def _small_sample_checks(limits: Guardrails, seen: Evidence, alpha: float) -> list[_Regression]:
    """Checks of a phase in which one version has had few requests: an apparent regression holds the
    rollout, and only errors of nearly every request are significant already."""
    old, new = seen.baseline, seen.candidate
    rows = (
        ("error rate", old.errors, new.errors, limits.error_rate, True),
        ("confidence", new.confidence, old.confidence, limits.confidence, False),
        (
            "latency in ms",
            old.latency_ms,
            new.latency_ms,
            (limits.latency_ratio - 1) * old.latency_ms.mean,
            False,
        ),
    )
    found = []
    # Of each row the second is worse where it is larger: the candidate's errors and latency, and
    # the baseline's confidence.
    for measure, better, worse, allowed, attributable in rows:
        if not 0 < min(better.n, worse.n) < MIN_OBSERVATIONS:
            continue
        difference, at_least = worse.mean - better.mean, -inf
        if measure == "error rate":
            radii = (_error_radius(moments, alpha / 4) for moments in (better, worse))
            at_least = difference - sum(radii)
        found.append(_Regression(measure, at_least, difference, allowed, attributable))
    return found


def _error_radius(moments: Moments, alpha: float) -> float:
    few = moments.n < MIN_OBSERVATIONS
    return rough_radius(moments.n, alpha) if few else radius(moments, alpha, within=_RATE)


def _no_baseline_checks(
    plan: RolloutPlan, evidence: Mapping[int, Evidence], before: Moments, alpha: float
) -> list[_Regression]:
    """Error rate of phases in which every user has the candidate, against the baseline's of earlier
    phases; attributable only where there never was a baseline."""
    found = []
    for number, one in evidence.items():
        shared = plan.phases[number].percent < 100 and one.baseline.errors.n
        if not shared and not plan.phases[number].shadow:
            errors, allowed = one.candidate.errors, plan.guardrails.error_rate + before.mean
            failing = errors.mean - radius(errors, alpha, within=_RATE)
            found.append(_Regression("error rate", failing, errors.mean, allowed, not before.n))
    return found
