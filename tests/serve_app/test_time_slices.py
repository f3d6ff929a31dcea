"""Turns: no adapter waits for good, no more compute at a time than there are slots."""

import asyncio
import random

import pytest

from serve_app.engine.time_slices import AdapterTimeSlices


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Requests:
    """Requests that stay under way until they are told to end."""

    def __init__(self, slots: AdapterTimeSlices) -> None:
        self.slots = slots
        self.under_way: list[tuple[int, asyncio.Event]] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, adapter: int) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._run(adapter))
        self.tasks.add(task)
        return task

    async def _run(self, adapter: int) -> None:
        done = asyncio.Event()
        async with self.slots.using(adapter):
            self.under_way.append((adapter, done))
            try:
                await done.wait()
            finally:
                self.under_way.remove((adapter, done))

    def running(self) -> list[int]:
        return sorted(adapter for adapter, _ in self.under_way)

    async def end(self, adapter: int) -> None:
        next(done for one, done in self.under_way if one == adapter).set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_busy_adapter_gives_its_slot_up_when_its_turn_is_over() -> None:
    clock = Clock()
    requests = Requests(AdapterTimeSlices(1, 1.0, clock))
    requests.start(1)
    await settle()
    requests.start(2)
    await settle()
    requests.start(1)  # its turn is not over
    await settle()
    assert requests.running() == [1, 1]
    clock.now = 2.0
    requests.start(1)  # it is now: this one waits behind the other adapter
    requests.start(2)
    await settle()
    assert requests.running() == [1, 1]
    await requests.end(1)
    await requests.end(1)
    assert requests.running() == [2, 2]
    await requests.end(2)
    await requests.end(2)
    assert requests.running() == [1]


async def test_without_others_waiting_a_turn_has_no_end() -> None:
    clock = Clock()
    requests = Requests(AdapterTimeSlices(2, 1.0, clock))
    for adapter in (1, 2, 1, 1):
        requests.start(adapter)
        clock.now += 10
        await settle()
    assert requests.running() == [1, 1, 1, 2]


async def test_who_gives_up_waiting_is_not_waited_for() -> None:
    clock = Clock()
    requests = Requests(AdapterTimeSlices(1, 1.0, clock))
    requests.start(1)
    await settle()
    gone = requests.start(2)
    await settle()
    clock.now = 2.0
    late = requests.start(1)
    await settle()
    assert requests.running() == [1]
    gone.cancel()
    await settle()
    assert requests.running() == [1, 1], "nobody else waits any more"
    late.cancel()
    await settle()
    assert requests.running() == [1]
    await requests.end(1)
    assert requests.slots.active == 0


async def test_one_that_is_let_in_and_leaves_at_once_gives_its_slot_back() -> None:
    requests = Requests(AdapterTimeSlices(1, 1.0))
    requests.start(1)
    await settle()
    leaving = requests.start(2)
    await settle()
    requests.under_way[0][1].set()
    await asyncio.sleep(0)
    leaving.cancel()
    await settle()
    requests.start(3)
    await settle()
    assert requests.running() == [3]


@pytest.mark.parametrize("seed", range(30))
async def test_everybody_is_served_and_never_more_than_the_slots(seed: int) -> None:
    drawn, clock = random.Random(seed), Clock()
    count = drawn.randint(1, 4)
    slots = AdapterTimeSlices(count, 0.5, clock)
    requests = Requests(slots)
    waited: dict[asyncio.Task[None], float] = {}
    for _ in range(400):
        clock.now += drawn.expovariate(10)
        act = drawn.random()
        if act < 0.5:  # a few adapters are asked for far more than the others
            waited[requests.start(int(drawn.paretovariate(0.7)) % 20)] = clock.now
        elif act < 0.95 and requests.under_way:
            await requests.end(drawn.choice(requests.under_way)[0])
        elif requests.tasks:
            drawn.choice(sorted(requests.tasks, key=id)).cancel()
        await settle()
        assert slots.active <= count
        assert len({adapter for adapter, _ in requests.under_way}) == slots.active
    for _ in range(2000):
        if not requests.under_way:
            break
        clock.now += 1.0
        await requests.end(requests.under_way[0][0])
    assert all(task.done() for task in requests.tasks)
    assert slots.active == 0
