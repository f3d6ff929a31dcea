"""Rollouts through the control plane: real SQLite, a fake fleet, the test's own ticks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.control.plane import ControlPlane
from cluster.errors import ConflictError, NotFoundError
from cluster.registry import answers
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.outcomes import AnswerSource
from cluster.rollout.plan import Phase, RolloutPlan
from cluster.rollout.state import Report, Status
from cluster.types import AdapterVersion, VersionState
from tests.cluster.test_control import ACME, BASE, BY, V1, V2, _live_v1, _passed_v2
from tests.fakes.evaluations import report
from tests.fakes.fleet import FakeFleet

PLAN = RolloutPlan(phases=(Phase(percent=50, min_requests=50, min_seconds=0),))


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def start(url: str, tmp_path: Path, fleet: FakeFleet) -> Iterator[Callable[[], ControlPlane]]:
    """Starts a control plane on the same registry, as Ray does after a crash."""
    made = list[ControlPlane]()

    def again() -> ControlPlane:
        made.append(ControlPlane(url, fleet, max_rank=32, audit=tmp_path / "audit"))
        return made[-1]

    yield again
    for one in made:
        one.close()


@pytest.fixture
async def control(
    start: Callable[[], ControlPlane], make_adapter: Callable[..., Path]
) -> ControlPlane:
    """Version 1 is live, version 2 has passed the gate."""
    control = start()
    await control.serving.serve_base(BASE, BY)
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    return control


async def _tick(control: ControlPlane) -> None:
    await control.rollouts._controller.tick(1000.0)


def _seen(rollout: int, failed: int = 0) -> Report:
    def arm(wrong: int) -> VariantStats:
        return VariantStats(Moments(400, wrong, wrong), Moments(400, 8000.0, 160400.0))

    return Report("g1", 1, rollout, 0, Evidence(arm(0), arm(failed)))


async def _states(control: ControlPlane) -> dict[str, VersionState]:
    return {str(r.id): r.state for r in await control.adapters.listed()}


async def test_a_candidate_is_proved_split_and_promoted(
    control: ControlPlane, fleet: FakeFleet
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, "ann")
    assert (await control.serving.table()).splits == {}, "unverified versions get no requests"
    assert "inventory@2" in {adapter.label for adapter in await control.serving.desired()}
    await _tick(control)
    table = await control.serving.table()
    split = table.splits["inventory"]
    assert (split.candidate.label, split.percent, split.candidate.golden) == ("inventory@2", 50, ())
    assert table.live["inventory"].label == "inventory@1"
    await control.rollouts.report([_seen(rollout.id)])
    await _tick(control)
    table = await control.serving.table()
    assert (table.live["inventory"].label, table.splits) == ("inventory@2", {})
    await _tick(control)
    assert fleet.calls[-1] == "retire 1"
    [found] = await control.rollouts.listed(10)
    assert found.status == Status.PROMOTED
    assert await _states(control) == {"inventory@1": "retired", "inventory@2": "live"}
    kinds = [event["kind"] for event in await control.events.newest(20)]
    assert {"rollout.started", "rollout.running", "rollout.draining", "version.live"} <= set(kinds)


async def test_a_candidate_that_fails_is_taken_back_and_stays_back(
    control: ControlPlane, fleet: FakeFleet
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    await control.rollouts.report([_seen(rollout.id, failed=80)])
    await _tick(control)
    table = await control.serving.table()
    assert (table.live["inventory"].label, table.splits) == ("inventory@1", {})
    await _tick(control)
    assert fleet.calls[-1] == "retire 2"
    assert (await _states(control))["inventory@2"] == "rejected"
    with pytest.raises(ConflictError, match="rejected"):
        await control.rollouts.start(V2, PLAN, BY)


async def test_a_refusal_by_a_rollout_can_be_appealed_on_record(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    with pytest.raises(ConflictError, match="is passed: there is nothing to appeal"):
        await control.rollouts.appeal(V2, "why not", "ops")
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    await control.rollouts.report([_seen(rollout.id, failed=80)])
    await _tick(control)
    with pytest.raises(ConflictError, match="still leaving"):
        await control.rollouts.appeal(V2, "sabotage", "ops")
    await _tick(control)
    await control.rollouts.appeal(V2, "sabotage by ann@shop.example.com", "ops")
    assert (await _states(control))["inventory@2"] == "passed"
    [event] = [e for e in await control.events.newest(20) if e["kind"] == "version.appealed"]
    assert (event["actor"], event["detail"]["rollout"]) == ("ops", rollout.id)
    assert "error rate" in event["detail"]["refused"]
    assert "ann@" not in str(event)
    assert (await control.rollouts.start(V2, PLAN, BY)).status == Status.PREPARING


async def test_what_the_gate_refused_is_evaluated_again(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    worse = report(0.01, previous="inventory@1", previous_accuracy=0.9)
    candidate = make_adapter(version=3, evaluation=worse)
    version = await control.adapters.register(str(candidate), "acme", BY)
    assert not (await control.evaluations.judge(version, BY)).passed
    with pytest.raises(ConflictError, match="refused by the gate"):
        await control.rollouts.appeal(version, "it is good", "ops")


async def test_whose_word_alone_is_against_a_candidate_is_set_aside_on_record(
    control: ControlPlane, start: Callable[[], ControlPlane]
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    seen = replace(_seen(rollout.id, failed=400), account="rival/k1")
    await control.rollouts.report(
        [seen, replace(_seen(rollout.id), source="g2", account="acme/k2")]
    )
    await _tick(control)
    assert (await control.serving.table()).splits["inventory"].aside == {"rival"}
    [event] = [e for e in await control.events.newest(20) if e["kind"] == "rollout.set_aside"]
    assert "error rate" in event["detail"]["aside"]["rival"]
    again = start()
    assert (await again.serving.table()).splits["inventory"].aside == {"rival"}
    await _tick(again)
    assert (await again.serving.table()).live["inventory"].label == "inventory@1"
    await again.rollouts.promote("inventory", "ann")
    assert (await again.serving.table()).live["inventory"].label == "inventory@2"


async def test_a_candidate_that_is_not_proved_never_serves(
    control: ControlPlane, fleet: FakeFleet
) -> None:
    await control.rollouts.start(V2, PLAN, BY)
    fleet.difference = float("nan")
    await _tick(control)
    assert (await control.serving.table()).splits == {}
    [found] = await control.rollouts.listed(10)
    assert found.status == Status.WITHDRAWING
    assert "not proved" in found.reason


async def test_a_rollout_outlives_the_control_plane(
    control: ControlPlane, start: Callable[[], ControlPlane]
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    await control.rollouts.report([_seen(rollout.id)])
    again = start()
    table = await again.serving.table()
    assert table.splits == (await control.serving.table()).splits
    assert {a.label for a in await again.serving.desired()} == {"inventory@1", "inventory@2"}
    await again.rollouts.report([_seen(rollout.id)])
    await _tick(again)
    assert (await again.serving.table()).live["inventory"].label == "inventory@2"


async def test_a_kill_ends_the_rollout_too(control: ControlPlane, fleet: FakeFleet) -> None:
    await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    await control.serving.kill("inventory", "stop", BY)
    table = await control.serving.table()
    assert (table.live, table.splits, table.stopped(ACME, "inventory")) == ({}, {}, True)
    assert await control.serving.desired() == []
    [found] = await control.rollouts.listed(1)
    assert found.status == Status.WITHDRAWING
    with pytest.raises(ConflictError, match="revive it first"):
        control._routing.refuse_killed("inventory")


async def test_one_rollout_of_an_adapter_at_a_time(control: ControlPlane) -> None:
    await control.rollouts.start(V2, PLAN, BY)
    for act in (control.rollouts.start(V2, PLAN, BY), control.serving.promote(V2, BY)):
        with pytest.raises(ConflictError, match="under way"):
            await act
    await control.rollouts.end("inventory", "enough", "ann")
    with pytest.raises(NotFoundError, match="no rollout"):
        await control.rollouts.end("inventory", "enough", "ann")
    [found] = await control.rollouts.listed(1)
    assert found.reason == "ann: enough"


async def test_what_a_person_ended_may_be_begun_again(control: ControlPlane) -> None:
    await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    await control.rollouts.end("inventory", "not this week", "ann")
    await _tick(control)
    assert (await _states(control))["inventory@2"] == "passed"
    again = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    assert (await control.serving.table()).splits["inventory"].rollout == again.id


async def test_a_replica_that_restarts_costs_a_candidate_nothing(
    control: ControlPlane, fleet: FakeFleet
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    fleet.fail_on = "prepare"
    await _tick(control)
    [found] = await control.rollouts.listed(1)
    assert (found.status, found.reason) == (
        Status.PREPARING,
        "tried again: not proved on every replica: prepare inventory@2 failed",
    )
    assert (await control.serving.table()).splits == {}
    asked = len(fleet.calls)
    await _tick(control)
    assert len(fleet.calls) == asked, "not at once: loading holds engines up"
    fleet.fail_on = ""
    await control.rollouts._controller.tick(1002.0)
    [found] = await control.rollouts.listed(1)
    assert (found.status, found.reason) == (Status.RUNNING, "")
    # Not for ever: and then too it may be begun again.
    await control.rollouts.end("inventory", "enough", BY)
    await _tick(control)
    await control.rollouts.start(V2, PLAN, BY)
    fleet.fail_on = "prepare"
    await control.rollouts._controller.tick(time.time() + PLAN.give_up_s + 60)
    [found, _] = await control.rollouts.listed(2)
    assert (found.status, found.id) == (Status.WITHDRAWING, rollout.id + 1)
    assert (await _states(control))["inventory@2"] == "passed"


async def test_a_move_is_of_the_rollout_as_it_is_by_then(control: ControlPlane) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    moving = control.rollouts._controller.move(rollout.id, 1001.0)
    await control.rollouts.end("inventory", "not this week", "ann")
    await moving
    [found] = await control.rollouts.listed(1)
    assert found.status == Status.ROLLED_BACK
    await control.rollouts._controller.move(rollout.id, 1002.0)  # it is over


async def test_a_long_drain_holds_up_no_other_rollout(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
) -> None:
    other = AdapterVersion("returns", 1)
    await control.adapters.register(str(make_adapter(name="returns")), "acme", BY)
    await control.evaluations.judge(other, BY)
    await control.serving.promote(other, BY)
    newer = report(previous="returns@1", previous_accuracy=0.5, wins=60, losses=10)
    path = make_adapter(name="returns", version=2, evaluation=newer)
    await control.adapters.register(str(path), "acme", BY)
    await control.evaluations.judge(AdapterVersion("returns", 2), BY)
    first = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    fleet.goes_on = asyncio.Event()
    await control.rollouts.report([_seen(first.id)])
    try:
        async with asyncio.timeout(20):
            table = await control.serving.table()
            while table.live["inventory"].version != 2:
                table = await control.serving.watch(table.generation, 1.0)
            await control.rollouts.start(AdapterVersion("returns", 2), PLAN, BY)
            table = await control.serving.table()
            while "returns" not in table.splits:
                table = await control.serving.watch(table.generation, 1.0)
        [_, draining] = await control.rollouts.listed(2)
        assert draining.status == Status.DRAINING
    finally:
        fleet.goes_on.set()


async def test_a_plan_may_wait_for_a_person(control: ControlPlane, fleet: FakeFleet) -> None:
    rollout = await control.rollouts.start(V2, PLAN.model_copy(update={"at_end": "wait"}), BY)
    with pytest.raises(ConflictError, match="is preparing"):
        await control.rollouts.promote("inventory", "ann")  # it is not proved yet
    await _tick(control)
    with pytest.raises(ConflictError, match="0 of 50 requests"):
        await control.rollouts.promote("inventory", "ann")
    await control.rollouts.report([_seen(rollout.id)])
    await _tick(control)
    assert (await control.serving.table()).live["inventory"].label == "inventory@1", "it waits"
    await control.rollouts.promote("inventory", "ann")
    table = await control.serving.table()
    assert (table.live["inventory"].label, table.splits) == ("inventory@2", {})
    await _tick(control)
    assert fleet.calls[-1] == "retire 1"
    [found] = await control.rollouts.listed(1)
    assert found.status == Status.PROMOTED
    assert found.reason.startswith("ann: ")
    with pytest.raises(NotFoundError, match="no rollout"):
        await control.rollouts.promote("inventory", "ann")


async def test_a_person_cannot_promote_what_fails(control: ControlPlane) -> None:
    rollout = await control.rollouts.start(V2, PLAN.model_copy(update={"at_end": "wait"}), BY)
    await _tick(control)
    await control.rollouts.report([_seen(rollout.id, failed=80)])
    with pytest.raises(ConflictError, match="error rate"):
        await control.rollouts.promote("inventory", "ann")
    await control.serving.kill("inventory", "stop", BY)
    with pytest.raises(ConflictError, match="revive it first"):
        await control.rollouts.promote("inventory", "ann")


async def test_a_first_version_has_nothing_to_be_rolled_out_beside(
    start: Callable[[], ControlPlane], make_adapter: Callable[..., Path]
) -> None:
    control = start()
    await control.serving.serve_base(BASE, BY)
    await control.adapters.register(str(make_adapter()), "acme", BY)
    await control.evaluations.judge(V1, BY)
    with pytest.raises(ConflictError, match="promote inventory@1 itself"):
        await control.rollouts.start(V1, PLAN, BY)


async def test_only_a_passed_version_is_rolled_out(control: ControlPlane) -> None:
    with pytest.raises(ConflictError, match="live"):
        await control.rollouts.start(V1, PLAN, BY)


async def test_the_control_plane_ticks_by_itself(control: ControlPlane) -> None:
    await control.rollouts.start(V2, PLAN, BY)
    before = await control.serving.table()
    async with asyncio.timeout(10):
        table = await control.serving.watch(before.generation, 10.0)
    assert "inventory" in table.splits


async def test_feedback_counts_once_and_only_on_answers_that_were_given(
    control: ControlPlane,
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    liked = VariantStats(resolved=Moments(1, 1.0, 1.0))
    assert not await control.rollouts.record_outcome("tr-a", V2, liked)
    answered = {"tr-a": AnswerSource("candidate", 3), "tr-b": AnswerSource("baseline", 5)}
    seen = Evidence(VariantStats(groups=1), VariantStats(groups=1 << 255))
    await control.rollouts.report([Report("g1", 1, rollout.id, 0, seen, answered)])
    control.rollouts._store.save(control.rollouts._controller.active[0])
    [kept] = control.rollouts._store.active()
    assert kept.whole == seen, "as many bits as that in either database"
    assert await control.rollouts.record_outcome("tr-a", V2, liked)
    assert not await control.rollouts.record_outcome("tr-a", V2, liked), "an outcome counts once"
    assert not await control.rollouts.record_outcome("tr-b", V2, liked), (
        "another version gave that answer"
    )
    assert await control.rollouts.record_outcome("tr-b", V1, liked)
    rated = VariantStats(resolved=Moments(1, 0.0, 0.0), rating=Moments(1, 4.0, 16.0))
    assert await control.rollouts.record_outcome("tr-a", V2, rated)
    [found] = await control.rollouts.listed(1)
    assert found.whole.candidate.resolved == Moments(1, 1.0, 1.0)
    assert found.whole.candidate.rating == Moments(1, 4.0, 16.0)
    assert found.whole.baseline.resolved.n == 1
    assert not await control.rollouts.record_outcome("tr-a", AdapterVersion("inventory", 9), liked)
    assert not await control.rollouts.record_outcome("tr-a", AdapterVersion("nobody", 1), liked)


@pytest.mark.parametrize("kept", [True, False])
async def test_feedback_counts_on_answers_from_before_a_restart(
    control: ControlPlane, start: Callable[[], ControlPlane], kept: bool
) -> None:
    rollout = await control.rollouts.start(V2, PLAN, BY)
    await _tick(control)
    answered = {"tr-a": AnswerSource("candidate", 3), "tr-b": AnswerSource("baseline", 5)}
    report = Report("g1", 1, rollout.id, 0, Evidence(), answered)
    await control.rollouts.report([report])
    liked = VariantStats(resolved=Moments(1, 1.0, 1.0))
    assert await control.rollouts.record_outcome("tr-a", V2, liked)
    if kept:  # else what was seen since the last tick dies with the process
        await _tick(control)

    again = start()
    await again.rollouts.report([report])  # its gateway did not hear that it was taken
    assert not await again.rollouts.record_outcome("tr-a", V2, liked), "an outcome counts once"
    assert await again.rollouts.record_outcome("tr-b", V1, liked)
    [found] = await again.rollouts.listed(1)
    assert found.whole.candidate.resolved.n == int(kept)
    assert found.whole.baseline.resolved == Moments(1, 1.0, 1.0)

    await again.rollouts.end("inventory", "enough", BY)
    rated = VariantStats(rating=Moments(1, 4.0, 16.0))
    assert not await again.rollouts.record_outcome("tr-b", V1, rated), "it ends"
    with again._database.read() as tx:
        assert answers.get(tx, "tr-b") is not None
    await _tick(again)
    assert not await again.rollouts.record_outcome("tr-b", V1, rated), "it is over"
    with again._database.read() as tx:
        assert answers.get(tx, "tr-b") is None
