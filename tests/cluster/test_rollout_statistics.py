"""What the evidence of a rollout may be taken for, where requests are not alike."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from cluster.rollout.decide import Action
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.groups import GROUPS, group_of
from cluster.rollout.outcomes import Side
from cluster.rollout.plan import Phase, RolloutPlan, Trial
from cluster.rollout.sequential import compared, grouped_radius
from cluster.rollout.state import Report, Rollout, Status, chosen
from cluster.rollout.trial import Sides, verdict
from cluster.types import AdapterVersion


def _answers(drawn: random.Random, n: int, *, failing: float, ms: float) -> VariantStats:
    failed = sum(drawn.random() < failing for _ in range(n))
    took = Moments.of([drawn.gauss(ms, ms / 5) for _ in range(n)])
    sure = Moments.of([drawn.gauss(0.9, 0.05) for _ in range(n)])
    return VariantStats(Moments(n, failed, failed), took, sure)


def _carried_out(seed: int, *, failing: tuple[float, ...], ms: tuple[float, ...]) -> Rollout:
    """A rollout of a candidate that is no other than the baseline, whatever happens to both:
    `failing` and `ms` are of each phase of the default plan, the shadow first."""
    drawn, plan = random.Random(seed), RolloutPlan()
    rollout = Rollout(seed, AdapterVersion("care", 2), AdapterVersion("care", 1), plan).begun(0.0)
    now = 0.0
    for number in range(2000):
        now += 10.0
        phase = plan.phases[rollout.phase]
        theirs = 20 if phase.shadow else round(60 * phase.percent / 100)
        ours = 20 if phase.shadow else 60 - theirs
        so = {"failing": failing[rollout.phase], "ms": ms[rollout.phase]}
        seen = Evidence(_answers(drawn, ours, **so), _answers(drawn, theirs, **so))
        rollout = rollout.with_report(Report("g", number, seed, rollout.phase, seen))
        rollout = rollout.after(rollout.decided(now), now)
        if rollout.status != Status.RUNNING:
            break
    return rollout


@pytest.mark.parametrize(
    ("failing", "ms"),
    [
        pytest.param((0, 0, 0, 0.1), (20, 20, 20, 20), id="an outage at the last share"),
        pytest.param((0, 0.2, 0, 0), (20, 20, 20, 20), id="an outage at the first share"),
        pytest.param((0, 0, 0, 0), (20, 20, 60, 60), id="it gets slower"),
        pytest.param((0, 0, 0, 0), (20, 20, 60, 20), id="it gets slower for a while"),
    ],
)
def test_what_happens_to_both_versions_is_not_the_candidates_fault(
    failing: tuple[float, ...], ms: tuple[float, ...]
) -> None:
    ended = [_carried_out(seed, failing=failing, ms=ms) for seed in range(10)]
    assert {rollout.status for rollout in ended} == {Status.DRAINING}, ended[0].reason


def test_stretches_are_compared_one_by_one() -> None:
    """Simpson's paradox: better in each stretch, worse in all of them together."""
    calm = (Moments(900, 9, 9), Moments(100, 0, 0))
    bad = (Moments(100, 40, 40), Moments(900, 333, 333))
    found = compared([calm, bad], 0.01, within=(0, 1))
    assert found is not None
    assert found.estimate < 0
    assert (calm[1] + bad[1]).mean > (calm[0] + bad[0]).mean
    assert found.interval.low < found.estimate < found.interval.high
    few = (Moments(29, 0, 0), Moments(900, 900, 900))
    assert compared([few], 0.01) is None
    assert compared([calm, bad, few], 0.01, within=(0, 1)) == found


def _trial(seed: int, users: int, spread: float, *, better: float = 0.0) -> str:
    """What an A/B test says of 3,000 outcomes, looked at after every 50; users differ, each of
    them by Beta(spread, spread), and the candidate settles more by `better`."""
    drawn, trial = random.Random(seed), Trial(outcome="resolved", confidence=0.95)
    settles = [drawn.betavariate(spread, spread) for _ in range(users)]
    sides: Sides = {"baseline": {}, "candidate": {}}
    for _ in range(60):
        for _ in range(50):
            user = drawn.randrange(users)
            mine = chosen(seed, str(user), 50)
            groups = dict(sides["candidate" if mine else "baseline"])
            chance = settles[user] + (better if mine else 0.0)
            said = Moments.of([float(drawn.random() < chance)])
            group = group_of(str(user))
            groups[group] = groups.get(group, Moments()) + said
            sides = {**sides, "candidate" if mine else "baseline": groups}
        if (says := verdict(trial, sides).says) != "undecided":
            return says
    return "undecided"


@pytest.mark.parametrize(("users", "spread"), [(30, 2.0), (100, 2.0), (100, 0.5), (1000, 2.0)])
def test_users_who_differ_are_no_difference_between_versions(users: int, spread: float) -> None:
    said = Counter(_trial(seed, users, spread) for seed in range(60))
    assert said["undecided"] >= 57, said


def test_a_difference_between_versions_is_seen_all_the_same() -> None:
    said = Counter(_trial(seed, 1000, 5.0, better=0.25) for seed in range(20))
    assert said == {"better": 20}


def _groups(*groups: Moments) -> float:
    return grouped_radius(groups, 0.05, within=(0, 1))


def test_a_group_of_users_who_are_alike_tells_as_much_as_one_of_them() -> None:
    one, many = [Moments(1, 1.0, 1.0), Moments(1)] * 50, [Moments(90, 90.0, 90.0), Moments(90)] * 50
    assert _groups(*many) == pytest.approx(_groups(*one))
    mixed = [Moments(90, 45.0, 45.0)] * 100
    assert _groups(*mixed) < _groups(*many) / 3
    alike = [Moments(90, 90.0, 90.0)] * 25
    assert _groups(*alike) > 0.1, "the next user may be another"
    assert _groups(*mixed[:19]) == float("inf"), "too few to tell"
    assert len({group_of(f"user-{n}") for n in range(10_000)}) == GROUPS
    assert 0 <= group_of("\ud800") < GROUPS


@pytest.mark.parametrize(
    ("users", "share", "percent", "votes"),
    [(250, 0.95, 10, 100), (400, 0.95, 6, 50), (1000, 0.97, 3, 50), (60, 0.5, 50, 50)],
)
def test_users_who_are_always_of_one_mind_are_no_difference_between_versions(
    users: int, share: float, percent: float, votes: int
) -> None:
    """Who of them gets the candidate is a draw, however often each of them speaks."""
    trial, said = Trial(outcome="resolved", confidence=0.95), Counter[str]()
    for seed in range(200):
        drawn = random.Random(seed)
        sides: dict[Side, dict[int, Moments]] = {"baseline": {}, "candidate": {}}
        for user in map(str, range(users)):
            word = float(drawn.random() < share)
            groups = sides["candidate" if chosen(seed, user, percent) else "baseline"]
            spoken = Moments(votes, votes * word, votes * word)
            groups[group_of(user)] = groups.get(group_of(user), Moments()) + spoken
        said[verdict(trial, sides).says] += 1
    assert said["undecided"] >= 190, said


def test_one_caller_alone_decides_no_ab_test() -> None:
    plan = RolloutPlan(phases=(Phase(percent=50, trial=Trial(outcome="resolved")),))
    rollout = Rollout(1, AdapterVersion("care", 2), AdapterVersion("care", 1), plan).begun(0.0)
    good, bad = Moments(2000, 1900, 1900), Moments(2000, 100, 100)
    seen = Evidence(
        VariantStats(errors=Moments(2000), resolved=bad),
        VariantStats(errors=Moments(2000), resolved=good),
    )
    rollout = rollout.with_report(Report("feedback", 0, 1, 0, seen, group=7))
    found = rollout.decided(100.0)
    assert found.action is Action.HOLD
    assert "of 1 users on one side" in found.reason


@pytest.mark.parametrize(
    ("groups", "shadow", "at_fault"),
    [(19, False, False), (20, False, True), (1, False, False), (0, True, True)],
)
def test_what_few_users_show_refuses_no_candidate_for_good(
    groups: int, shadow: bool, at_fault: bool
) -> None:
    """It is taken back all the same: they may have it worse, or be others."""
    plan = RolloutPlan(phases=(Phase(percent=50, shadow=shadow),))
    rollout = Rollout(1, AdapterVersion("care", 2), AdapterVersion("care", 1), plan).begun(0.0)
    quick, slow = Moments(500, 1e4, 2.5e5), Moments(500, 2e4, 1e6)
    mask = (1 << groups) - 1
    seen = Evidence(
        VariantStats(Moments(500), quick, groups=(1 << 99) - 1),
        VariantStats(Moments(500), slow, groups=mask),
    )
    found = rollout.with_report(Report("g", 0, 1, 0, seen)).decided(1.0)
    assert (found.action, found.at_fault) == (Action.ROLL_BACK, at_fault)
    assert found.reason.endswith("not attributable to the candidate") is not at_fault
    # An engine's fault is nobody's but the version's.
    failing = replace(seen, candidate=VariantStats(Moments(500, 250.0, 250.0), quick, groups=mask))
    found = rollout.with_report(Report("g", 0, 1, 0, failing)).decided(1.0)
    assert (found.action, found.at_fault) == (Action.ROLL_BACK, True)


def test_groups_of_users_add_up() -> None:
    both = VariantStats(Moments(1), groups=0b0110) + VariantStats(Moments(2), groups=0b1100)
    assert (both.errors.n, both.groups) == (3, 0b1110)


def test_one_vote_refuses_no_candidate_for_good() -> None:
    plan = RolloutPlan(phases=(Phase(percent=50, min_requests=50, min_seconds=0),))
    rollout = Rollout(1, AdapterVersion("care", 2), AdapterVersion("care", 1), plan).begun(0.0)
    fine = VariantStats(Moments(10_000), Moments(10_000, 2e5, 4.1e6), Moments(10_000, 9e3, 8.2e3))
    voted = Evidence(
        replace(fine, disliked=Moments(1)), replace(fine, disliked=Moments(1, 1.0, 1.0))
    )
    said = rollout.with_report(Report("feedback", 0, 1, 0, voted))
    assert said.decided(10.0).action is Action.PROMOTE
    # Somewhat worse, and not surely, until the time is over: it may be tried again.
    doubtful = Evidence(
        replace(fine, disliked=Moments(50, 5.0, 5.0)), replace(fine, disliked=Moments(50, 9.0, 9.0))
    )
    unsure = rollout.with_report(Report("feedback", 0, 1, 0, doubtful))
    assert unsure.decided(10.0).action is Action.HOLD
    found = unsure.decided(plan.give_up_s + 1.0)
    assert (found.action, found.at_fault) == (Action.ROLL_BACK, False)
    # Where a person is to decide, it waits for them however long it has been.
    waits = replace(unsure, plan=plan.model_copy(update={"at_end": "wait"}))
    assert waits.decided(plan.give_up_s + 1.0).action is Action.HOLD


def _failing(n: int, failed: int) -> VariantStats:
    return VariantStats(Moments(n, failed, failed), groups=(1 << 99) - 1)


@pytest.mark.parametrize(
    ("percent", "baseline", "candidate", "expected"),
    [
        # Nearly all users have it, and it fails them all: a handful of the others is enough.
        (95, _failing(29, 0), _failing(5000, 5000), Action.ROLL_BACK),
        (95, _failing(11, 0), _failing(200, 200), Action.ROLL_BACK),
        (50, _failing(20, 0), _failing(40, 40), Action.ROLL_BACK),
        # What looks bad and is not known for sure is waited for.
        (95, _failing(2, 0), _failing(200, 200), Action.HOLD),
        (50, _failing(20, 0), _failing(20, 20), Action.HOLD),
        (50, _failing(20, 0), _failing(20, 5), Action.HOLD),
        (50, _failing(20, 20), _failing(20, 20), Action.PROMOTE),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_few_requests_on_one_side_hide_no_failing_candidate(
    percent: float, baseline: VariantStats, candidate: VariantStats, expected: Action, before: bool
) -> None:
    phases = [Phase(percent=25), Phase(percent=percent, min_requests=20, min_seconds=0)]
    plan = RolloutPlan(phases=tuple(phases if before else phases[1:]))
    rollout = Rollout(1, AdapterVersion("care", 2), AdapterVersion("care", 1), plan).begun(0.0)
    if before:
        fine = Evidence(_failing(900, 0), _failing(300, 0))
        rollout = rollout.with_report(Report("g", 0, 1, 0, fine))
        rollout = replace(rollout, phase=1)
    seen = Report("g", 1, 1, rollout.phase, Evidence(baseline, candidate))
    found = rollout.with_report(seen).decided(1.0)
    assert found.action is expected, found.reason


def test_what_failed_before_may_fail_where_all_users_have_the_candidate() -> None:
    plan = RolloutPlan(phases=(Phase(percent=50), Phase(percent=100, min_seconds=0)))
    rollout = Rollout(1, AdapterVersion("care", 2), AdapterVersion("care", 1), plan).begun(0.0)
    half = Evidence(_failing(2000, 100), _failing(2000, 100))
    rollout = replace(rollout.with_report(Report("g", 0, 1, 0, half)), phase=1)
    alike = Report("g", 1, 1, 1, Evidence(VariantStats(), _failing(3000, 150)))
    assert rollout.with_report(alike).decided(1.0).action is Action.PROMOTE
    worse = Report("g", 1, 1, 1, Evidence(VariantStats(), _failing(3000, 900)))
    found = rollout.with_report(worse).decided(1.0)
    assert (found.action, found.at_fault) == (Action.ROLL_BACK, False), "who knows"
