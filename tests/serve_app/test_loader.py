"""What a replica holds: loaded once, proved once, dropped only when idle."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import SwapError
from cluster.records.adapter import ServedAdapter
from cluster.storage import require_stable
from serve_app.engine.loader import Loader
from serve_app.engine.residents import ResidentAdapters
from serve_app.protocol import AdapterGone, AdapterKilled
from tests.waiting import until


class Engine:
    """Implements `AdapterEngine`; what is in `wrong` is not what its trainer made."""

    def __init__(self) -> None:
        self.residents = ResidentAdapters()
        self.loads: list[tuple[int, bool]] = []
        self.wrong: set[int] = set()
        self.stuck = False
        self.most = 0

    async def load(self, adapter: ServedAdapter, *, probe: bool) -> float:
        self.loads.append((adapter.int_id, probe))
        await asyncio.sleep(0.03)
        self.residents.add(adapter)
        self.most = max(self.most, len(self.residents.held))
        return 1.0 if probe and adapter.int_id in self.wrong else 0.0

    async def unload(self, int_id: int) -> bool:
        self.residents.discard(int_id)
        await asyncio.sleep(0)
        return not self.stuck


class Control:
    def __init__(self) -> None:
        self.adapters: list[ServedAdapter] = []
        self.asked = 0
        self.down = False

    async def desired(self) -> list[ServedAdapter]:
        return self.adapters

    async def desired_version(self, int_id: int) -> ServedAdapter | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise ConnectionError("down")
        return next((one for one in self.adapters if one.int_id == int_id), None)


class World:
    def __init__(self, make: Callable[..., Path]) -> None:
        self.engine, self.control, self._make = Engine(), Control(), make

    def add(self, number: int) -> ServedAdapter:
        path = self._make(version=number)
        found = ServedAdapter("inventory", number, number, str(path), require_stable(path))
        self.control.adapters.append(found)
        return found

    def loader(self, capacity: int = 2, eager: int = 9) -> Loader:
        return Loader(self.engine, self.control, "r1", capacity=capacity, eager=eager)

    @property
    def held(self) -> list[int]:
        return sorted(self.engine.residents.held)


@pytest.fixture
def world(make_adapter: Callable[..., Path]) -> World:
    return World(make_adapter)


async def test_the_first_in_line_are_held_before_traffic_comes(world: World) -> None:
    for number in (1, 2, 3):
        world.add(number)
    await world.loader(capacity=2).reconcile()
    assert world.held == [1, 2]
    assert world.engine.loads == [(1, True), (2, True)]
    await world.loader(capacity=3, eager=0).reconcile()
    assert world.held == [1, 2]


async def test_what_is_asked_for_is_loaded_once_for_all_who_ask(world: World) -> None:
    one, loader = world.add(1), world.loader(eager=0)
    await asyncio.gather(*(loader.hold(one) for _ in range(10)))
    assert world.held == [1]
    assert world.engine.loads == [(1, True)]
    assert world.control.asked == 1


async def test_the_first_who_asks_may_leave(world: World) -> None:
    one, loader = world.add(1), world.loader(eager=0)
    first = asyncio.ensure_future(loader.hold(one))
    await asyncio.sleep(0)
    others = asyncio.ensure_future(loader.hold(one))
    await asyncio.sleep(0)
    first.cancel()
    await others
    assert world.held == [1]


async def test_a_version_is_unloaded_once_its_last_request_is_done(world: World) -> None:
    one, loader = world.add(1), world.loader()
    await loader.prepare(one)
    with world.engine.residents.using(one):
        retiring = asyncio.ensure_future(loader.retire(1, 5.0))
        await asyncio.sleep(0.01)
        assert world.held == [1]
        with pytest.raises(AdapterGone), world.engine.residents.using(one):
            pass
        assert not retiring.done()
    assert await retiring
    assert world.held == []


async def test_a_version_that_is_not_done_in_time_is_kept_and_refused(world: World) -> None:
    one, loader = world.add(1), world.loader()
    await loader.prepare(one)
    with world.engine.residents.using(one):
        assert not await loader.retire(1, 0.01)
    assert world.held == [1]
    assert world.engine.residents.refuses(1)
    await loader.prepare(one)
    assert not world.engine.residents.refuses(1), "until it is wanted again"
    world.engine.stuck = True
    assert not await loader.retire(1, 0.01), "nor is it said to be gone where the engine has it"


async def test_a_version_prepared_again_while_it_is_seen_off_stays(world: World) -> None:
    one, loader = world.add(1), world.loader()
    await loader.prepare(one)
    again = asyncio.ensure_future(loader.prepare(one))
    await until(lambda: len(world.engine.loads) == 2)
    # It is idle, so that nothing but the change under way is waited for.
    assert not await loader.retire(1, 5.0)
    await again
    with world.engine.residents.using(one):
        assert world.held == [1]
    assert await loader.retire(1, 5.0)
    assert world.held == []


async def test_those_idle_longest_make_room_and_are_not_proved_again(world: World) -> None:
    one, two, three = (world.add(number) for number in (1, 2, 3))
    loader = world.loader(eager=0)
    await loader.hold(one)
    await loader.hold(two)
    with world.engine.residents.using(one):
        pass
    await loader.hold(three)
    assert world.held == [1, 3]
    with pytest.raises(AdapterGone), world.engine.residents.using(two):
        pass
    await loader.hold(two)
    assert world.engine.loads == [(1, True), (2, True), (3, True), (2, False)]
    assert world.engine.most == 2


async def test_what_is_in_use_is_never_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.engine.loader._ROOM_S", 0.05)
    one, two, three = (world.add(number) for number in (1, 2, 3))
    loader = world.loader(eager=0)
    await loader.hold(one)
    await loader.hold(two)
    with world.engine.residents.using(one), world.engine.residents.using(two):
        await loader.hold(three)
        with pytest.raises(SwapError, match="max_cpu_loras"):
            await loader.prepare(three)
        assert world.held == [1, 2]


async def test_who_finds_no_room_waits_for_the_first_that_is_idle(world: World) -> None:
    one, two, three = (world.add(number) for number in (1, 2, 3))
    loader = world.loader(eager=0)
    await loader.hold(one)
    await loader.hold(two)
    with world.engine.residents.using(one):
        with world.engine.residents.using(two):
            waiting = asyncio.ensure_future(loader.hold(three))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await waiting
        assert world.held == [1, 3]


async def test_those_that_are_never_idle_make_room_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.engine.loader._PATIENCE_S", 0.02)
    one, two, three = (world.add(number) for number in (1, 2, 3))
    loader, residents = world.loader(eager=0), world.engine.residents
    for adapter in (one, two):
        await loader.hold(adapter)
    answered, over = Counter[int](), False

    async def client(adapter: ServedAdapter, pause: float) -> None:
        """Another like it is always under way, so that its adapter is never idle."""
        while not over:
            await loader.hold(adapter)
            with residents.using(adapter):
                await asyncio.sleep(pause)
            answered[adapter.int_id] += 1

    busy = [client(one, 0.011), client(one, 0.017), client(two, 0.011), client(two, 0.017)]
    clients = [asyncio.ensure_future(asked) for asked in busy]
    await until(lambda: answered[1] > 2 and answered[2] > 2)
    clients.append(asyncio.ensure_future(client(three, 0.011)))
    await until(lambda: answered[3] > 2)
    before = answered.copy()
    await until(lambda: all(answered[number] > before[number] + 2 for number in (1, 2, 3)))
    over = True
    await asyncio.gather(*clients)
    assert world.engine.most == 2


async def test_an_eviction_is_cancelled_where_no_version_comes_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.engine.loader._PATIENCE_S", 0.01)
    monkeypatch.setattr("serve_app.engine.loader._ROOM_S", 0.05)
    one, two, three = (world.add(number) for number in (1, 2, 3))
    loader, residents = world.loader(eager=0), world.engine.residents
    await loader.hold(one)
    await loader.hold(two)
    with residents.using(one), residents.using(two):
        waiting = asyncio.ensure_future(loader.hold(three))
        await until(lambda: not residents.accepts_requests(1))
        again = asyncio.ensure_future(loader.hold(one))
        await waiting
        await again
        assert world.held == [1, 2]
        assert residents.accepts_requests(1)
        assert residents.accepts_requests(2)


async def test_files_that_changed_since_they_were_proved_are_not_loaded_again(
    world: World,
) -> None:
    one, two = world.add(1), world.add(2)
    loader = world.loader(capacity=1, eager=0)
    await loader.hold(one)
    await loader.hold(two)
    (Path(one.path) / "adapter_model.safetensors").write_bytes(b"other")
    await loader.hold(one)
    assert world.held == [2]


async def test_a_version_that_fails_verification_does_not_serve(world: World) -> None:
    one = world.add(1)
    world.engine.wrong.add(1)
    await world.loader().reconcile()
    assert world.held == []
    await world.loader().hold(one)
    assert world.held == []


async def test_an_undesired_version_is_looked_up_once_a_second(world: World) -> None:
    gone = replace(world.add(1), int_id=99)
    loader = world.loader(eager=0)
    for _ in range(5):
        await loader.hold(gone)
    assert world.control.asked == 1
    assert world.held == []


async def test_while_the_control_plane_is_away_what_is_held_serves_on(world: World) -> None:
    one, two = world.add(1), world.add(2)
    loader = world.loader(eager=0)
    await loader.hold(one)
    world.control.down = True
    await loader.hold(two)
    with world.engine.residents.using(one):
        assert world.held == [1]


async def test_what_is_wanted_no_more_goes_when_it_was_so_twice_and_is_idle(world: World) -> None:
    world.add(1)
    loader = world.loader()
    await loader.reconcile()
    one = world.control.adapters.pop()
    await loader.reconcile()
    assert world.held == [1]
    with world.engine.residents.using(one):
        await loader.reconcile()
        assert world.held == [1]
    await loader.reconcile()
    assert world.held == []


async def test_a_version_killed_while_it_is_prepared_does_not_serve(world: World) -> None:
    one, loader = world.add(1), world.loader()
    preparing = asyncio.ensure_future(loader.prepare(one))
    await until(lambda: bool(world.engine.loads))
    world.engine.residents.kill("inventory")
    # What comes after it waits for nothing but its turn.
    reviving = asyncio.ensure_future(loader.prepare(world.add(2)))
    with pytest.raises(SwapError, match="switched off"):
        await preparing
    with pytest.raises(AdapterKilled), world.engine.residents.using(one):
        pass
    await reviving
    await loader.prepare(one)
    with world.engine.residents.using(one):
        assert world.held == [1, 2]


async def test_a_version_killed_while_it_is_loaded_does_not_serve(world: World) -> None:
    one, loader = world.add(1), world.loader(eager=0)
    asking = asyncio.ensure_future(loader.hold(one))
    await until(lambda: bool(world.engine.loads))
    world.engine.residents.kill("inventory")
    await asking
    assert world.held == []
    await asyncio.sleep(1.1)  # it may be asked about again
    await loader.hold(one)
    assert world.held == [1]
