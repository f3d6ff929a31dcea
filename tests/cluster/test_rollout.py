"""Rollout decisions: what the evidence says, when, and to whom."""

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.rollout.decide import Action, decide
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.plan import Guardrails, Phase, RolloutPlan, Trial
from cluster.rollout.sequential import compared, radius
from cluster.rollout.state import Report, Rollout, Status, chosen
from cluster.rollout.trial import Sides, verdict
from cluster.types import AdapterVersion

PLAN = RolloutPlan(
    phases=(
        Phase(percent=20, shadow=True, min_requests=50, min_seconds=10),
        Phase(percent=5, min_requests=100, min_seconds=10),
        Phase(percent=50, min_requests=100, min_seconds=10),
    ),
    give_up_s=1000,
)


def _rate(n: int, k: int) -> Moments:
    return Moments(n, k, k)


def _arm(
    n: int, failed: int = 0, ms: float = 20.0, confidence: float = 0.9, **more: Any
) -> VariantStats:
    return VariantStats(
        _rate(n, failed),
        Moments(n, n * ms, n * (ms * ms + 4)),
        Moments(n, n * confidence, n * (confidence**2 + 0.01)),
        **more,
    )


def test_moments_add_up() -> None:
    values = [random.Random(1).gauss(3, 2) for _ in range(100)]
    whole, parts = Moments.of(values), Moments.of(values[:30]) + Moments.of(values[30:])
    assert parts.n == whole.n
    assert (parts.mean, parts.variance) == pytest.approx((whole.mean, whole.variance))
    assert (Moments().mean, Moments().variance) == (0.0, 0.0)


def test_the_interval_holds_at_every_look() -> None:
    """Two equal rates, looked at after every ten observations: wrong in fewer runs than alpha."""
    drawn, wrong, runs = random.Random(3), 0, 400
    for _ in range(runs):
        old, new = Moments(), Moments()
        missed = False
        for _ in range(100):
            old += _rate(10, sum(drawn.random() < 0.1 for _ in range(10)))
            new += _rate(10, sum(drawn.random() < 0.1 for _ in range(10)))
            told = compared([(old, new)], 0.05, within=(0, 1))
            missed |= told is not None and not told.interval.low <= 0 <= told.interval.high
        wrong += missed
    assert wrong / runs < 0.05


def test_the_interval_narrows_on_a_difference() -> None:
    found = compared([(_rate(2000, 20), _rate(2000, 200))], 0.01, within=(0, 1))
    assert found is not None
    assert 0 < found.interval.low < 0.09 < found.interval.high
    assert radius(_rate(29, 3), 0.05, within=(0, 1)) == math.inf
    assert radius(_rate(1000, 0), 0.05, within=(0, 1)) > 0, "no failure yet is not no failure ever"


def _decide(seen: Evidence, *, number: int = 1, waited: float = 60.0) -> tuple[Action, str]:
    found = decide(PLAN, number, phase_started=0.0, evidence={number: seen}, sides={}, now=waited)
    return found.action, found.reason


@pytest.mark.parametrize(
    ("candidate", "what"),
    [
        (_arm(1000, failed=200), "error rate"),
        (_arm(1000, ms=60.0), "latency"),
        (_arm(1000, confidence=0.5), "confidence"),
        (_arm(1000, disliked=_rate(400, 200)), "disliked"),
        (_arm(1000, escalated=_rate(400, 200)), "escalations"),
    ],
)
def test_a_breached_guardrail_rolls_back(candidate: VariantStats, what: str) -> None:
    baseline = _arm(1000, disliked=_rate(400, 10), escalated=_rate(400, 10))
    action, reason = _decide(Evidence(baseline, candidate))
    assert action is Action.ROLL_BACK
    assert what in reason


def test_a_good_candidate_advances_and_is_promoted() -> None:
    good = Evidence(_arm(500, 5), _arm(500, 5))
    assert _decide(good, number=0)[0] is Action.ADVANCE
    assert _decide(good, number=1)[0] is Action.ADVANCE
    assert _decide(good, number=2)[0] is Action.PROMOTE
    waits = PLAN.model_copy(update={"at_end": "wait"})
    found = decide(waits, 2, phase_started=0, evidence={2: good}, sides={}, now=60)
    assert found.action is Action.HOLD


def test_it_holds_until_enough_was_seen() -> None:
    assert _decide(Evidence(_arm(500), _arm(99)))[0] is Action.HOLD
    assert _decide(Evidence(_arm(500), _arm(500)), waited=9.0)[0] is Action.HOLD
    assert _decide(Evidence(_arm(500), _arm(99)), waited=1001.0)[0] is Action.ROLL_BACK
    # Worse, but not surely: it neither advances nor is rolled back, until time is up.
    doubtful = Evidence(_arm(120, 1), _arm(120, 5))
    assert _decide(doubtful)[0] is Action.HOLD
    assert _decide(doubtful, waited=1001.0)[0] is Action.ROLL_BACK


def test_a_candidate_that_has_all_users_must_not_fail_either() -> None:
    action, reason = _decide(Evidence(VariantStats(), _arm(500, 400)))
    assert action is Action.ROLL_BACK
    assert "error rate" in reason
    assert _decide(Evidence(VariantStats(), _arm(500, 8)))[0] is Action.HOLD, (
        "too many, but not surely"
    )
    assert _decide(Evidence(VariantStats(), _arm(500, 1, ms=900.0)))[0] is Action.ADVANCE


def _running() -> Rollout:
    rollout = Rollout(7, AdapterVersion("care", 2), AdapterVersion("care", 1), PLAN)
    return rollout.begun(100.0)


def test_a_report_counts_once_and_only_where_it_belongs() -> None:
    rollout, seen = _running(), Evidence(_arm(10), _arm(10))
    report = Report("g1", 1, 7, 0, seen)
    counted = rollout.with_report(report)
    assert counted.seen == seen
    assert counted.with_report(report) is counted
    assert counted.with_report(replace(report, source="g2")).seen.candidate.errors.n == 20
    assert rollout.with_report(replace(report, phase=1)) is rollout, "a phase yet to come"
    assert rollout.withdrawn("x", at_fault=False).with_report(report).seen == Evidence()
    # The shadow's late report is no part of what the canary is judged by.
    late = replace(counted, phase=1).with_report(replace(report, number=2))
    assert (late.seen, late.whole, late.alike) == (Evidence(), Evidence(), {})


def test_the_canary_starts_with_fresh_evidence_and_keeps_it_from_phase_to_phase() -> None:
    rollout = _running().with_report(Report("g", 1, 7, 0, Evidence(_arm(60), _arm(60))))
    canary = rollout.after(rollout.decided(200.0), 200.0)
    assert (canary.phase, canary.phase_started, canary.whole) == (1, 200.0, Evidence())
    seen = Evidence(_arm(200), _arm(200))
    canary = canary.with_report(Report("g", 2, 7, 1, seen))
    half = canary.after(canary.decided(300.0), 300.0)
    assert (half.phase, half.seen, half.whole) == (2, Evidence(), seen)


def test_users_stick_and_are_spread() -> None:
    users = [f"u{n}" for n in range(4000)]
    five = {u for u in users if chosen(1, u, 5)}
    fifty = {u for u in users if chosen(1, u, 50)}
    assert five < fifty
    assert len(five) / len(users) == pytest.approx(0.05, abs=0.02)
    assert len(fifty) / len(users) == pytest.approx(0.5, abs=0.05)
    assert five != {u for u in users if chosen(2, u, 5)}
    assert not any(chosen(1, u, 0) for u in users)
    assert all(chosen(1, u, 100) for u in users)
    assert isinstance(chosen(1, "\ud800", 5), bool)


@pytest.mark.parametrize(
    "phases",
    [
        [],
        [{"percent": 50}, {"percent": 5}],
        [{"percent": 5}, {"percent": 50, "shadow": True}],
        [{"percent": 101}],
        [{"percent": -1}],
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(phases: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="phase"):
        RolloutPlan.model_validate({"phases": phases})


def test_status_says_what_is_over() -> None:
    assert {status for status in Status if status.over} == {Status.PROMOTED, Status.ROLLED_BACK}
    assert Guardrails().alpha < 0.05


TEST = Trial(outcome="resolved")


def _outcomes(resolved: Moments, requests: int = 5000) -> VariantStats:
    return replace(_arm(requests), resolved=resolved)


def _tested(
    baseline: Moments, candidate: Moments, now: float = 10.0, trial: Trial = TEST
) -> tuple[Action, str]:
    phase = Phase(percent=50, min_requests=50, min_seconds=5, trial=trial)
    seen = Evidence(_outcomes(baseline), _outcomes(candidate))
    plan = RolloutPlan(phases=(phase,), give_up_s=1000)
    sides = _sides(baseline, candidate)
    found = decide(plan, 0, phase_started=0.0, evidence={0: seen}, sides=sides, now=now)
    return found.action, found.reason


def _sides(baseline: Moments | list[float], candidate: Moments | list[float]) -> Sides:
    """Of two hundred groups of users, at random."""
    drawn = random.Random(0)

    def parts(whole: Moments | list[float]) -> dict[int, Moments]:
        if isinstance(whole, Moments):
            whole = [1.0] * int(whole.total) + [0.0] * int(whole.n - whole.total)
        groups: dict[int, Moments] = {}
        for said in whole:
            group = drawn.randrange(200)
            groups[group] = groups.get(group, Moments()) + Moments.of([said])
        return groups

    return {"baseline": parts(baseline), "candidate": parts(candidate)}


def test_an_ab_test_ends_with_a_verdict() -> None:
    assert _tested(_rate(2000, 1000), _rate(2000, 1300))[0] is Action.PROMOTE
    action, reason = _tested(_rate(2000, 1000), _rate(2000, 700))
    assert action is Action.ROLL_BACK
    assert reason.startswith("worse: resolved 0.500 to 0.350, difference -0.")
    assert reason.endswith("at 95% confidence")
    action, reason = _tested(_rate(2000, 1000), _rate(2000, 1020))
    assert action is Action.HOLD
    assert reason.startswith("undecided")
    assert "only 3 outcomes of 3 users" in _tested(_rate(2000, 1000), _rate(3, 3))[1]


def test_a_trial_is_printed_as_json_with_figures_and_verdict() -> None:
    plan = RolloutPlan(phases=(Phase(percent=50, trial=Trial(outcome="resolved")),))
    rollout = Rollout(1, AdapterVersion("care", 2), AdapterVersion("care", 1), plan)
    unknown = rollout.as_json()["verdict"]
    assert (unknown["says"], unknown["low"], unknown["high"]) == ("undecided", None, None)
    old, new = _rate(2000, 1000), _rate(2000, 1300)
    seen = Evidence(replace(_arm(2000), resolved=old), replace(_arm(2000), resolved=new))
    known = replace(
        rollout,
        evidence={0: seen},
        sides={side: {"": dict(of)} for side, of in _sides(old, new).items()},
    )
    told = json.loads(json.dumps(known.as_json()))
    assert told["verdict"]["says"] == "better"
    assert told["verdict"]["candidate"] == pytest.approx(0.65)
    assert 0 < told["verdict"]["low"] < 0.15 < told["verdict"]["high"]
    assert told["verdict"]["text"].startswith("better: resolved 0.500 to 0.650")
    assert told["seen"]["candidate"]["resolved"] == 0.65


@pytest.mark.parametrize(
    ("undecided", "expected"),
    [("promote", Action.PROMOTE), ("roll back", Action.ROLL_BACK)],
)
def test_an_ab_test_that_shows_nothing_ends_as_was_said(undecided: Any, expected: Action) -> None:
    trial = Trial(outcome="resolved", undecided=undecided)
    same = _rate(2000, 1000)
    assert _tested(same, same, trial=trial)[0] is Action.HOLD
    assert _tested(same, same, now=1001.0, trial=trial)[0] is expected


def test_less_is_better_of_some_outcomes_and_a_gain_may_be_asked_for() -> None:
    fewer = _sides(_rate(2000, 600), _rate(2000, 300))
    assert verdict(Trial(outcome="escalated"), fewer).says == "better"
    assert verdict(Trial(outcome="escalated", min_gain=0.1), fewer).says == "undecided"
    assert verdict(Trial(outcome="escalated", min_gain=0.3), fewer).says == "undecided"
    rated = _sides([2.0, 3.0] * 500, [4.0, 5.0] * 500)
    assert verdict(Trial(outcome="rating"), rated).says == "better"
    alike = _sides([3.0] * 40, [3.0] * 36 + [4.0] * 4)
    assert verdict(Trial(outcome="rating"), alike).says == "undecided"


def test_an_ab_test_of_equals_is_seldom_decided_however_often_one_looks() -> None:
    drawn = random.Random(5)
    trial, wrong = Trial(outcome="resolved", confidence=0.9), 0
    for _ in range(200):
        old, new = dict[int, Moments](), dict[int, Moments]()
        for _ in range(60):
            for groups in (old, new):
                group, resolved = drawn.randrange(100), sum(drawn.random() < 0.6 for _ in range(20))
                groups[group] = groups.get(group, Moments()) + _rate(20, resolved)
            if verdict(trial, {"baseline": old, "candidate": new}).says != "undecided":
                wrong += 1
                break
    assert wrong <= 20


@pytest.mark.parametrize("changes", [{"shadow": True}, {"percent": 0}, {"percent": 100}])
def test_an_ab_test_needs_users_on_both_sides(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="both sides"):
        Phase.model_validate({"percent": 50, "trial": {"outcome": "rating"}, **changes})
