"""A few keys, or one tenant, pass no verdict about a version that others use."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.rollout.accounts import account, cell_of, is_aside
from cluster.rollout.decide import Action
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.groups import group_of
from cluster.rollout.plan import Phase, RolloutPlan, Trial
from cluster.rollout.state import Report, Rollout, Status
from cluster.types import AdapterVersion

NEW, OLD = AdapterVersion("care", 2), AdapterVersion("care", 1)
PLAN = RolloutPlan(phases=(Phase(percent=50, min_requests=200, min_seconds=0),))
OWNER = "acme"


def _rate(n: int, ones: int) -> Moments:
    return Moments(n, float(ones), float(ones))


def _arm(n: int, failed: int = 0, ms: float = 100.0, who: str = "") -> VariantStats:
    """Of `n` requests of as many invented users."""
    groups = 0
    for number in range(min(n, 300)):
        groups |= 1 << group_of(f"{who}-{number}")
    done = n - failed
    latency = Moments(done, ms * done, ms * ms * done * 1.01)
    confidence = Moments(done, 0.9 * done, 0.9 * 0.9 * done * 1.001)
    return VariantStats(
        errors=_rate(n, failed), latency_ms=latency, confidence=confidence, groups=groups
    )


class Trying:
    """A rollout of the owner's adapter and what keys show of it."""

    def __init__(self, plan: RolloutPlan = PLAN, owner: str = OWNER) -> None:
        self.rollout = Rollout(7, NEW, OLD, plan, Status.RUNNING, owner=owner)
        self._number = 0

    def see(
        self,
        who: str,
        old: VariantStats | None = None,
        new: VariantStats | None = None,
        **more: Any,
    ) -> None:
        self._number += 1
        seen = Evidence(old or VariantStats(), new or VariantStats())
        report = Report("g", self._number, 7, 0, seen, account=who, **more)
        self.rollout = self.rollout.with_report(report)

    def awaits_a_person(self) -> None:
        """Those set aside get the version too once it is live: a person agrees to that."""
        decision = self.rollout.decided(1.0)
        assert (decision.action, decision.aside) == (Action.HOLD, frozenset())
        assert "waits for a person" in decision.reason
        assert self.rollout.agreed(1.0).action is Action.PROMOTE

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
    trying.awaits_a_person()


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
    trying.awaits_a_person()


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
    trying.awaits_a_person()


@pytest.mark.parametrize("flood", ["rival/k1", "acme/flood"])
def test_a_flood_of_good_answers_hides_no_failures_of_the_others(flood: str) -> None:
    trying = Trying()
    for number in range(8):
        trying.see(f"acme/k{number}", _arm(100, who=str(number)), _arm(100, 20, who=str(number)))
    trying.see(flood, _arm(100), _arm(1_000_000))
    decision = trying.rollout.decided(1.0)
    assert (decision.action, decision.aside) == (Action.HOLD, frozenset())
    assert decision.reason.startswith("without 1 ")
    late = trying.rollout.decided(1e9)
    assert (late.action, late.at_fault) == (Action.ROLL_BACK, False)


def test_an_invited_tenant_alone_has_nothing_promoted() -> None:
    trying = Trying()
    trying.see("rival/k1", _arm(300), _arm(300))
    assert trying.rollout.decided(1.0).action is Action.HOLD
    assert trying.rollout.agreed(1.0).action is Action.HOLD
    trying.see("acme/k1", _arm(40, who="a"), _arm(40, who="a"))
    assert trying.step() is Action.PROMOTE


def test_invented_users_of_an_invited_tenant_win_no_ab_test() -> None:
    phase = Phase(percent=50, min_requests=1, min_seconds=0, trial=Trial(outcome="rating"))
    trying = Trying(RolloutPlan(phases=(phase,)))
    trying.see("acme/k1", _arm(40), _arm(40))
    for number in range(300):
        for side, stars in (("old", 1), ("new", 5)):
            said = VariantStats(rating=Moments(4, 4.0 * stars, 4.0 * stars * stars))
            trying.see("rival/k1", **{side: said}, group=group_of(f"r{number}"))
            if number < 40:
                own = 6 - stars
                said = VariantStats(rating=Moments(1, float(own), float(own * own)))
                trying.see("acme/k1", **{side: said}, group=group_of(f"a{number}"))
    assert trying.rollout.verdict is not None
    assert trying.rollout.verdict.says == "better"
    assert trying.step() is not Action.PROMOTE


def test_a_slow_key_alone_stops_no_rollout() -> None:
    trying = Trying()
    trying.see("acme/k1", _arm(3000, who="a"), _arm(3000, who="a"))
    trying.see("rival/k1", _arm(100, who="r"), _arm(40, ms=2000.0, who="r"))
    assert trying.step() is Action.HOLD
    assert trying.rollout.aside.keys() == {"rival/k1"}
    trying.awaits_a_person()


def test_where_the_main_user_alone_suffers_nothing_is_promoted_by_itself() -> None:
    trying = Trying()
    trying.see("acme/k1", _arm(9000, who="a"), _arm(9000, 9000, who="a"))
    trying.see("rival/k2", _arm(200, who="r"), _arm(200, who="r"))
    assert trying.step() is Action.HOLD
    assert trying.rollout.aside.keys() == {"acme"}
    assert trying.rollout.decided(1.0).action is Action.HOLD


def test_an_early_bad_key_silences_no_other_of_its_tenant() -> None:
    trying = Trying(owner="house")
    for number in range(20):
        trying.see(f"rival/k{number}", _arm(50, who=str(number)), _arm(50, who=str(number)))
    trying.see("acme/one", _arm(50, who="x"), _arm(400, 400, who="x"))
    assert trying.step() is Action.HOLD
    trying.see("acme/two", new=_arm(50, who="y"))
    aside = trying.rollout.aside.keys()
    assert aside == {"acme"} or "acme/two" in str(trying.rollout.cells)


def test_late_strangers_in_a_shared_cell_are_set_aside_for_good() -> None:
    trying = Trying()
    for number in range(60):
        who = f"t{number}/k"
        trying.see(who, _arm(40, who=who), _arm(40, who=who))
    trying.see("zz/evil", _arm(10, who="z"), _arm(2000, 2000, who="z"))
    assert trying.step() is Action.HOLD
    assert is_aside(trying.rollout.aside, "zz/evil")
    before = trying.rollout.whole
    trying.see("zz/evil", new=_arm(2000, 2000, who="z"))
    assert trying.rollout.whole == before


def test_votes_of_invented_users_of_one_key_end_no_ab_test() -> None:
    trial = Trial(outcome="disliked")
    trying = Trying(RolloutPlan(phases=(Phase(percent=50, min_requests=0, trial=trial),)))
    for side in ("old", "new"):
        for number in range(300):
            for who, share in (("rival/k1", side == "new"), ("acme/k1", number % 10 == 0)):
                arm = VariantStats(disliked=_rate(4, 4 * share))
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
