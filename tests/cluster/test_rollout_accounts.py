"""A few keys, or one tenant, pass no verdict about a version that others use."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.rollout.accounts import account, cell_of, is_aside
from cluster.rollout.decide import Action
from cluster.rollout.evidence import Arm, Evidence, Moments
from cluster.rollout.groups import group_of
from cluster.rollout.plan import Phase, RolloutPlan, Trial
from cluster.rollout.state import Report, Rollout, Status
from cluster.types import AdapterVersion

NEW, OLD = AdapterVersion("care", 2), AdapterVersion("care", 1)
PLAN = RolloutPlan(phases=(Phase(percent=50, min_requests=200, min_seconds=0),))
OWNER = "acme"


def _rate(n: int, ones: int) -> Moments:
    return Moments(n, float(ones), float(ones))


def _arm(n: int, failed: int = 0, ms: float = 100.0, who: str = "") -> Arm:
    """Of `n` requests of as many invented users."""
    groups = 0
    for number in range(min(n, 300)):
        groups |= 1 << group_of(f"{who}-{number}")
    done = n - failed
    latency = Moments(done, ms * done, ms * ms * done * 1.01)
    confidence = Moments(done, 0.9 * done, 0.9 * 0.9 * done * 1.001)
    return Arm(errors=_rate(n, failed), latency_ms=latency, confidence=confidence, groups=groups)


class Trying:
    """A rollout of the owner's adapter and what keys show of it."""

    def __init__(self, plan: RolloutPlan = PLAN, owner: str = OWNER) -> None:
        self.rollout = Rollout(7, NEW, OLD, plan, Status.RUNNING, owner=owner)
        self._number = 0

    def see(self, who: str, old: Arm | None = None, new: Arm | None = None, **more: Any) -> None:
        self._number += 1
        seen = Evidence(old or Arm(), new or Arm())
        report = Report("g", self._number, 7, 0, seen, account=who, **more)
        self.rollout = self.rollout.with_report(report)

    def step(self, now: float = 1.0) -> Action:
        decision = self.rollout.decided(now)
        self.rollout = self.rollout.after(decision, now)
        return decision.action


def test_an_invited_tenant_cannot_have_a_candidate_refused() -> None:
    """As it was done: invented users, and requests that were known to fail."""
    trying = Trying()
    trying.see("rival/k1", _arm(100, who="r"), _arm(100, 100, who="r"))
    assert trying.step() is Action.HOLD
    assert trying.rollout.aside.keys() == {"rival"}
    assert trying.rollout.seen == Evidence()
    trying.see("rival/k2", new=_arm(500, 500))
    assert trying.rollout.seen == Evidence(), "none of its keys is heard any more"
    trying.see("acme/k1", _arm(300, who="a"), _arm(300, who="a"))
    assert trying.step() is Action.PROMOTE


def test_an_owner_alone_judges_its_own_adapter() -> None:
    trying = Trying()
    trying.see("acme/k1", _arm(200), _arm(200, 100))
    assert trying.step() is Action.ROLL_BACK
    assert trying.rollout.at_fault


def test_what_two_tenants_see_is_a_verdict() -> None:
    trying = Trying()
    for who in ("acme/k1", "rival/k9"):
        trying.see(who, _arm(200, who=who), _arm(200, 100, who=who))
    assert trying.step() is Action.ROLL_BACK
    assert trying.rollout.at_fault


@pytest.mark.parametrize("attackers", [1, 2, 3])
def test_a_handful_of_a_tenants_keys_is_set_aside(attackers: int) -> None:
    trying = Trying()
    for number in range(20):
        bad = number < attackers
        arm = _arm(400, 400 if bad else 0, who=str(number))
        trying.see(f"acme/k{number}", _arm(100, who=str(number)), arm)
    assert trying.step() is Action.HOLD
    assert trying.rollout.aside.keys() == {f"acme/k{number}" for number in range(attackers)}
    assert trying.step() is Action.PROMOTE


@pytest.mark.parametrize("what", ["latency", "votes"])
def test_slow_or_disliked_by_one_key_alone_is_no_verdict(what: str) -> None:
    trying = Trying()
    for number in range(10):
        who, arm = str(number), _arm(300, who=str(number))
        if number == 4 and what == "latency":
            arm = _arm(300, ms=5000.0, who=who)
        elif number == 4:
            arm = replace(arm, disliked=_rate(300, 300))
        liked = replace(arm, disliked=_rate(50, 2)) if what == "votes" and number != 4 else arm
        old = replace(_arm(300, who=who), disliked=_rate(50, 2))
        trying.see(f"acme/k{number}", old, liked)
    assert trying.step() is Action.HOLD
    assert trying.rollout.aside.keys() == {"acme/k4"}
    assert trying.step() is Action.PROMOTE


def test_a_flood_of_good_answers_hides_no_failures_of_the_others() -> None:
    trying = Trying()
    for number in range(8):
        trying.see(f"acme/k{number}", _arm(100, who=str(number)), _arm(100, 20, who=str(number)))
    trying.see("rival/k1", _arm(100), _arm(1_000_000))
    assert trying.rollout.decided(1.0).action is Action.HOLD
    assert "without 1 key of 1 tenant" in trying.rollout.decided(1.0).reason


def test_votes_of_invented_users_of_one_key_end_no_ab_test() -> None:
    trial = Trial(outcome="disliked")
    trying = Trying(RolloutPlan(phases=(Phase(percent=50, min_requests=0, trial=trial),)))
    for side in ("old", "new"):
        for number in range(300):
            for who, share in (("rival/k1", side == "new"), ("acme/k1", number % 10 == 0)):
                arm = Arm(disliked=_rate(4, 4 * share))
                trying.see(who, **{side: arm}, group=group_of(f"{who}{number}"))
    assert trying.rollout.verdict is not None
    assert trying.rollout.verdict.says == "worse"
    assert trying.step() is Action.HOLD
    assert trying.rollout.aside.keys() == {"rival"}
    assert trying.rollout.verdict.says == "undecided"


def test_keys_beyond_what_is_kept_apart_share_cells_and_a_handful_is_found_all_the_same() -> None:
    trying = Trying()
    for number in range(1600):
        trying.see(f"acme/k{number}", _arm(3, who=str(number)), _arm(3, who=str(number)))
    for number in range(3):
        trying.see(f"acme/late{number}", new=_arm(1000, 1000, who=str(number)))
    cells = {cell for phase in trying.rollout.cells.values() for cell in phase}
    assert len(cells) <= 60
    assert trying.step() is Action.HOLD
    assert all(is_aside(trying.rollout.aside, f"acme/late{number}") for number in range(3))
    assert trying.rollout.whole.candidate.errors.mean == 0
    kept = sum(not is_aside(trying.rollout.aside, f"acme/k{n}") for n in range(1600))
    assert kept > 800, "most of the others go on"


def test_cells_are_bounded_however_many_tenants_there_are() -> None:
    known = set[str]()
    for number in range(3000):
        known.add(cell_of(account(f"t{number % 700}", f"k{number}"), known))
    assert len(known) <= 48 + 48 * 8 + 8
    assert cell_of("t0/k0", known) == "t0/k0"
    assert not is_aside((), "t0/k0")
