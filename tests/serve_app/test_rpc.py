"""Calls to replicas over real sockets of this machine."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from serve_app.rpc import frames
from serve_app.rpc.client import CallFailed, ReplicaLost, connect
from serve_app.rpc.pool import Pool
from serve_app.rpc.server import Address, Server
from serve_app.tasks import spawn_detached
from tests.waiting import until


class Replica:
    """A server with methods that can be held."""

    def __init__(self, name: str = "r1") -> None:
        self.server = Server(name, {"echo": self.echo, "wait": self.wait, "count": self.count})
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = 0
        self.calls = 0

    async def address(self) -> Address:
        return await self.server.address("127.0.0.1")

    async def echo(self, value: Any) -> Any:
        self.calls += 1
        if value == "bad":
            raise ValueError("not this one")
        return value

    async def wait(self) -> str:
        self.calls += 1
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "waited"

    async def count(self, upto: int) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                yield number
                if number == 2:
                    await self.wait()
        finally:
            self.entered.clear()


def _pool(*replicas: Replica) -> Pool:
    async def discover() -> list[Address]:
        return [await replica.address() for replica in replicas]

    return Pool("test", discover, look_s=0.05)


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    made = Replica()
    yield made
    made.gate.set()
    await made.server.leave()


async def test_answers_come_to_who_asked(replica: Replica) -> None:
    pool = _pool(replica)
    assert await asyncio.gather(*(pool.call("echo", n) for n in range(300))) == list(range(300))
    await pool.close()


async def test_a_message_of_many_reads_comes_whole(replica: Replica) -> None:
    pool, large = _pool(replica), b"x" * 5_000_000
    assert await pool.call("echo", large) == large
    await pool.close()


async def test_one_bad_call_fails_alone(replica: Replica) -> None:
    pool = _pool(replica)
    found = await asyncio.gather(
        *(pool.call("echo", value) for value in ("a", "bad", "b")), return_exceptions=True
    )
    assert [found[0], found[2]] == ["a", "b"]
    assert isinstance(found[1], CallFailed)
    assert "not this one" in str(found[1])
    await pool.close()


async def test_what_cannot_cross_fails_its_own_call(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(replica)
    assert await pool.call("echo", 1) == 1
    with pytest.raises((TypeError, AttributeError)):
        await pool.call("echo", lambda: None)
    monkeypatch.setattr(frames, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(ValueError, match="too large"):
        await pool.call("echo", b"x" * 2000)
    assert await pool.call("echo", 2) == 2
    await pool.close()


async def test_who_leaves_cancels_the_call_and_no_other(replica: Replica) -> None:
    pool = _pool(replica)
    left = asyncio.ensure_future(pool.call("wait"))
    stays = asyncio.ensure_future(pool.call("wait"))
    await until(lambda: replica.calls == 2)
    left.cancel()
    await until(lambda: replica.cancelled == 1)
    assert replica.server.under_way == 1
    replica.gate.set()
    assert await stays == "waited"
    assert replica.cancelled == 1
    await pool.close()


async def test_a_stream_comes_in_order_and_ends_where_it_is_left(replica: Replica) -> None:
    pool = _pool(replica)
    async with aclosing(pool.stream("count", 9)) as items:
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    await until(lambda: replica.server.under_way == 0)
    assert replica.cancelled == 1
    replica.gate.set()
    assert [item async for item in pool.stream("count", 9)] == list(range(9))
    await pool.close()


async def test_who_does_not_know_the_secret_is_cut_off_unread(replica: Replica) -> None:
    right = await replica.address()
    wrong = Address(right.replica, right.host, right.port, b"0" * len(right.secret))
    connection = await connect(wrong)
    with pytest.raises(ReplicaLost):
        await connection.call("echo", 1)
    assert replica.calls == 0
    assert right.secret.hex() not in repr(right)
    assert repr(right.secret) not in repr(right)


async def test_a_message_that_claims_to_be_huge_ends_the_connection(replica: Replica) -> None:
    connection = await connect(await replica.address())
    assert await connection.call("echo", 1) == 1
    connection.send_raw(b"\xff\xff\xff\xff")
    with pytest.raises(ReplicaLost):
        await connection.call("wait")


async def test_a_lost_replica_costs_its_calls_and_others_take_the_next() -> None:
    first, second = Replica("first"), Replica("second")
    pool = _pool(first, second)
    held = [asyncio.ensure_future(pool.call("wait", again=n == 1)) for n in range(2)]
    await until(lambda: first.calls + second.calls == 2)
    # Calls go to the less busy of the two.
    assert (first.calls, second.calls) == (1, 1)
    for peer in list(first.server._peers):
        peer.close()
    await until(lambda: first.calls + second.calls == 3 or any(task.done() for task in held))
    first.gate.set()
    second.gate.set()
    found = await asyncio.gather(*held, return_exceptions=True)
    assert sum(one == "waited" for one in found) >= 1
    assert all(one == "waited" or isinstance(one, ReplicaLost) for one in found)
    assert await pool.call("echo", 3) == 3
    await pool.close()
    await first.server.leave()
    await second.server.leave()


async def test_a_replica_that_leaves_sees_its_calls_out_and_gets_no_more() -> None:
    old, new = Replica("old"), Replica("new")
    replicas = [old]

    async def discover() -> list[Address]:
        return [await replica.address() for replica in replicas]

    pool = Pool("test", discover, look_s=0.05)
    held = asyncio.ensure_future(pool.call("wait"))
    await old.entered.wait()
    replicas.append(new)
    leaving = asyncio.ensure_future(old.server.leave())
    await asyncio.sleep(0.15)
    assert [await pool.call("echo", n) for n in range(5)] == list(range(5))
    assert (old.calls, new.calls) == (1, 5)
    assert not leaving.done()
    old.gate.set()
    assert await held == "waited"
    await leaving
    await pool.close()
    await new.server.leave()


async def test_a_call_waits_for_the_first_replica() -> None:
    replica, known = Replica(), asyncio.Event()

    async def discover() -> list[Address]:
        if not known.is_set():
            raise RuntimeError("not deployed yet")
        return [await replica.address()]

    pool = Pool("test", discover, look_s=0.05)
    call = asyncio.ensure_future(pool.call("echo", 1))
    await asyncio.sleep(0.1)
    assert not call.done()
    known.set()
    assert await call == 1
    await pool.close()
    await replica.server.leave()


async def test_shared_work_is_in_no_requests_context() -> None:
    request = contextvars.ContextVar("request", default="none")
    seen = []

    async def look() -> None:
        seen.append(request.get())

    request.set("one client's")
    await spawn_detached(look())
    assert seen == ["none"]
