"""The kill switch and what may follow it, through the control plane."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from cluster import audit
from cluster.control.kill_switch import KillSwitch
from cluster.control.plane import ControlPlane
from cluster.errors import ConflictError, NotFoundError, SwapError
from cluster.rollout.plan import Phase, RolloutPlan
from cluster.rollout.state import Status
from cluster.types import AdapterVersion
from tests.cluster.test_control import ACME, BASE, BY, V1, V2, _live_v1, _passed_v2, _slow
from tests.fakes.fleet import FakeFleet


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
async def control(url: str, fleet: FakeFleet, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(url, fleet, max_rank=32, audit=tmp_path / "audit")
    await plane.serving.serve_base(BASE, BY)
    yield plane
    plane.close()


async def test_a_killed_adapter_is_off_at_once_and_stays_off(
    control: ControlPlane,
    fleet: FakeFleet,
    url: str,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    report = await control.serving.kill("inventory", "it lies", "ann")
    assert (report.version, report.aborted, report.confirmed) == ("inventory@1", 3, True)
    table = await control.serving.table()
    assert table.resolve(ACME, "inventory") is None
    assert table.stopped(ACME, "inventory@1")
    assert await control.serving.desired() == []
    with pytest.raises(ConflictError, match="revive it first"):
        await control.serving.promote(V2, BY)
    again = ControlPlane(url, FakeFleet(), max_rank=32, audit=tmp_path / "audit")
    assert (await again.serving.table()).killed == {"inventory"}
    assert (await again.serving.table()).generation > table.generation
    newest = (await control.events.newest(1))[0]
    assert (newest["kind"], newest["actor"]) == ("adapter.killed", "ann")
    assert newest["detail"] == {"reason": "it lies"}
    assert audit.verify(tmp_path / "audit").verified
    revived = await control.serving.revive("inventory", BY)
    assert revived is not None
    assert revived.current == "inventory@1"
    assert (await control.serving.table()).resolve(ACME, "inventory") is not None
    with pytest.raises(ConflictError, match="not switched off"):
        await control.serving.revive("inventory", BY)


async def test_another_version_may_come_back_in_place_of_the_one_that_was_switched_off(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    await control.serving.promote(V2, BY)
    await control.serving.kill("inventory", "it lies", BY)
    with pytest.raises(NotFoundError, match="not registered"):
        await control.serving.revive("inventory", BY, AdapterVersion("inventory", 9))
    fleet.difference = 1.0
    with pytest.raises(SwapError):
        await control.serving.revive("inventory", BY, V1)
    assert (await control.serving.table()).killed == {"inventory"}
    fleet.difference = 0.0
    report = await control.serving.revive("inventory", BY, V1)
    assert report is not None
    assert report.current == "inventory@1"
    table = await control.serving.table()
    assert (table.killed, table.live["inventory"].version) == (frozenset(), 1)
    states = {str(found.id): found.state for found in await control.adapters.listed()}
    assert states == {"inventory@1": "live", "inventory@2": "retired"}


async def test_what_is_switched_off_is_what_a_candidate_has_to_be_better_than(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    await control.serving.kill("inventory", "it lies", BY)
    await control.adapters.register(str(make_adapter(version=3)), "acme", BY)
    with pytest.raises(ConflictError, match=r"but inventory@1 is live"):
        await control.evaluations.judge(AdapterVersion("inventory", 3), BY)
    live = await control.adapters.live("inventory")
    assert live is not None
    assert live.id == V1
    assert await control.adapters.live("nothing") is None
    await _passed_v2(control, make_adapter)
    report = await control.serving.revive("inventory", BY, V2)
    assert report is not None
    assert report.current == "inventory@2"


async def test_a_kill_in_the_middle_of_a_swap_wins(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    proving, go = _slow(fleet)
    swap = asyncio.create_task(control.serving.promote(V2, BY))
    await proving.wait()
    await control.serving.kill("inventory", "stop", BY)
    go.set()
    with pytest.raises(SwapError, match="switched off"):
        await swap
    assert (await control.serving.table()).live == {}
    assert fleet.calls[-1] == "remove 2"


async def test_a_kill_that_a_replica_does_not_confirm_holds_at_the_gateways(
    control: ControlPlane, fleet: FakeFleet, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    fleet.fail_on = "kill"
    assert not (await control.serving.kill("inventory", "stop", BY)).confirmed
    assert (await control.serving.table()).live == {}
    with pytest.raises(NotFoundError, match="there is no adapter"):
        await control.serving.kill("nope", "stop", BY)


async def test_to_revive_what_is_not_off_ends_no_rollout(
    control: ControlPlane, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    plan = RolloutPlan(phases=(Phase(percent=50, min_requests=50, min_seconds=0),))
    begun = await control.rollouts.start(V2, plan, BY)
    with pytest.raises(ConflictError, match="not switched off"):
        await control.serving.revive("inventory", BY)
    assert await control.rollouts.listed(1) == [begun]


@contextmanager
def _no_room(control: ControlPlane) -> Iterator[None]:
    """The disk that the audit log is on is full."""

    def append(_entries: object) -> list[str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as full:
        full.setattr(control._database._chain, "append", append)
        yield


async def test_a_kill_that_cannot_be_recorded_holds_and_is_recorded_later(
    control: ControlPlane, fleet: FakeFleet, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    with _no_room(control):
        report = await control.serving.kill("inventory", "it lies", "ann")
        assert (report.version, report.confirmed, report.recorded) == ("inventory@1", True, False)
        assert fleet.calls[-1] == "kill inventory"
        table = await control.serving.table()
        assert (table.live, table.killed) == ({}, {"inventory"})
        control._routing.refresh()  # another change is published
        assert (await control.serving.table()).killed == {"inventory"}
        with pytest.raises(NotFoundError, match="there is no adapter"):
            await control.serving.kill("nope", "stop", BY)
    newest = (await control.events.newest(1))[0]
    assert newest["kind"] != "adapter.killed"
    await control.serving.watch((await control.serving.table()).generation, 1.5)  # it ticks
    newest = (await control.events.newest(1))[0]
    assert (newest["kind"], newest["actor"]) == ("adapter.killed", "ann")


async def test_what_is_off_and_not_on_record_is_revived_once_it_can_be(
    control: ControlPlane,
    fleet: FakeFleet,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    await _live_v1(control, make_adapter)
    await _passed_v2(control, make_adapter)
    plan = RolloutPlan(phases=(Phase(percent=50, min_requests=50, min_seconds=0),))
    await control.rollouts.start(V2, plan, BY)
    with _no_room(control):
        # Nor is a reason in the way that no database takes.
        assert not (await control.serving.kill("inventory", "it\0lies \udce9", "ann")).recorded
        with pytest.raises(ConflictError, match="could not be recorded"):
            await control.serving.revive("inventory", BY)
        assert not (await control.serving.kill("inventory", "again", "bob")).recorded
        await control.rollouts._controller.tick(time.time())
        assert "prepare inventory@2" not in fleet.calls
    assert (await control.serving.revive("inventory", BY)) is not None
    assert (await control.serving.table()).live.keys() == {"inventory"}
    [rollout] = await control.rollouts.listed(1)
    assert rollout.status == Status.WITHDRAWING, "it is not on trial again"
    killed = [e for e in await control.events.newest(9) if e["kind"] == "adapter.killed"]
    assert [event["detail"]["reason"] for event in killed] == ["again", "itlies ?"]
    assert audit.verify(tmp_path / "audit").verified


def test_a_kill_that_cannot_be_recorded_is_tried_again_less_and_less() -> None:
    tries = list[float]()

    @contextmanager
    def change() -> Iterator[Session]:
        tries.append(now)
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    kills, now = KillSwitch(change), 0.0
    kills.add("inventory", "it lies", actor="ann", now=now)
    assert not kills.persist("inventory", now)
    while now < 300.0:
        now += 1.0
        kills.retry(now)
    assert tries == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 123.0, 183.0, 243.0]
    assert kills.unpersisted == {"inventory"}


async def test_a_revival_that_cannot_be_proved_leaves_it_off(
    control: ControlPlane, fleet: FakeFleet, make_adapter: Callable[..., Path]
) -> None:
    await _live_v1(control, make_adapter)
    await control.serving.kill("inventory", "stop", BY)
    fleet.difference = 1.0
    with pytest.raises(SwapError):
        await control.serving.revive("inventory", BY)
    assert (await control.serving.table()).killed == {"inventory"}
