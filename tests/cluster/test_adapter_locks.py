"""Turns: one change of an adapter at a time, those of others beside it, and one of all alone."""

import asyncio

from cluster.control.adapter_locks import AdapterLocks
from tests.waiting import until


async def test_changes_of_one_adapter_follow_each_other_and_those_of_others_do_not() -> None:
    turns, order, go = AdapterLocks(), list[str](), asyncio.Event()

    async def change(name: str, number: int, *, waits: bool) -> None:
        async with turns.one(name):
            order.append(f"{name}{number}")
            if waits:
                await go.wait()

    first = asyncio.ensure_future(change("a", 1, waits=True))
    await until(lambda: order == ["a1"])
    second = asyncio.ensure_future(change("a", 2, waits=False))
    await change("b", 1, waits=False)
    assert order == ["a1", "b1"]
    go.set()
    await asyncio.gather(first, second)
    assert order == ["a1", "b1", "a2"]
    assert not turns._locks


async def test_who_wants_all_of_them_waits_for_those_under_way_and_holds_up_the_next() -> None:
    turns, order, go = AdapterLocks(), list[str](), asyncio.Event()

    async def change(name: str) -> None:
        async with turns.one(name):
            order.append(name)
            await go.wait()

    async def all_of_them() -> None:
        async with turns.all():
            order.append("all")

    one = asyncio.ensure_future(change("a"))
    await until(lambda: order == ["a"])
    left = asyncio.ensure_future(all_of_them())
    await asyncio.sleep(0)
    left.cancel()
    every = asyncio.ensure_future(all_of_them())
    await asyncio.sleep(0)
    late = asyncio.ensure_future(change("b"))
    await asyncio.sleep(0.01)
    assert order == ["a"]
    go.set()
    await asyncio.gather(one, every, late)
    assert order == ["a", "all", "b"]
