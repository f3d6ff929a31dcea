import asyncio

import pytest

from cluster.records.adapter import ServedAdapter
from serve_app.engine.residents import ResidentAdapters
from serve_app.protocol import AdapterGone

A = ServedAdapter("a", 1, 1, "/a", "d")


async def test_only_what_is_held_is_served() -> None:
    residents = ResidentAdapters()
    with pytest.raises(AdapterGone), residents.using(A):
        pass
    residents.add(A)
    with residents.using(A):
        assert residents.in_flight(1) == 1
    assert residents.in_flight(1) == 0
    other = ServedAdapter("a", 1, 1, "/elsewhere", "d")
    with pytest.raises(AdapterGone), residents.using(other):
        pass


async def test_draining_waits_for_the_last_request_and_admits_none() -> None:
    residents = ResidentAdapters()
    residents.add(A)
    with residents.using(A):
        draining = asyncio.create_task(residents.drain(1, 5.0))
        await asyncio.sleep(0)
        with pytest.raises(AdapterGone), residents.using(A):
            pass
        assert not draining.done()
    assert await draining


async def test_a_drain_that_takes_too_long_says_so() -> None:
    residents = ResidentAdapters()
    residents.add(A)
    with residents.using(A):
        assert not await residents.drain(1, 0.01)
