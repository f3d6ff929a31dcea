"""Calls that many requests share, from the gateway's side and the replica's, joined without Ray."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from serve_app.engine.in_flight import Answer, InFlight
from serve_app.engine.outbox import Parcel
from serve_app.engine.remote import RemoteEngine
from serve_app.protocol import (
    AdapterGone,
    Delta,
    EngineFailed,
    Generation,
    GenerationRequest,
    Sampling,
)
from serve_app.tasks import apart

WORDS = ["one", "two", "three", "four", "five", "six"]


class Engine:
    """Answers word by word; a request waits for its gate where it has one."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []

    async def complete(self, request: GenerationRequest) -> Generation:
        return [item async for item in self.stream(request)][-1]  # type: ignore[return-value]

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        name = request.request_id
        if name.startswith("gone"):
            raise AdapterGone("a@1")
        if name.startswith("broken"):
            raise RuntimeError("segfault")
        try:
            for word in WORDS:
                yield Delta(f"{name}:{word} ")
                await asyncio.sleep(0)
            if name in self.gates:
                await self.gates[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        text = "".join(f"{name}:{word} " for word in WORDS)
        yield Generation(text, "base", 1, 6, "stop", 0.0, 0.0, None, 0.0, "r")


class Handle:
    """Stands for a Serve handle to one replica, with its methods and nothing else of it."""

    def __init__(self, engine: Engine) -> None:
        self.in_flight = InFlight(engine.complete, engine.stream)
        self.calls: list[int] = []
        self.parcels: list[Parcel] = []

    def options(self, **_options: Any) -> Handle:
        return self

    @property
    def complete(self) -> Any:
        return _Method(self._complete)

    @property
    def complete_many(self) -> Any:
        return _Method(self._many)

    @property
    def stream(self) -> Any:
        return _Method(self._stream)

    async def _complete(self, request: GenerationRequest) -> Answer:
        self.calls.append(1)
        return await self.in_flight.one(request)

    async def _many(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Any]:
        self.calls.append(len(requests))
        async for answers in self.in_flight.many(requests):
            yield answers

    async def _stream(self, request: GenerationRequest, caller: str) -> AsyncIterator[Parcel]:
        async for parcel in self.in_flight.stream(request, caller):
            self.parcels.append(parcel)
            yield parcel

    def broadcast(self, method: str, request_id: str) -> Handle:
        assert method == "abort"
        self.in_flight.abort(request_id)
        return self

    async def results_async(self) -> list[None]:
        return [None]


class _Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


def _request(name: str) -> GenerationRequest:
    return GenerationRequest(name, ({"role": "user", "content": "hi"},), Sampling(), None)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def handle(engine: Engine) -> Handle:
    return Handle(engine)


@pytest.fixture
def remote(handle: Handle) -> RemoteEngine:
    return RemoteEngine(handle, max_group=4)


async def _settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_requests_that_leave_together_share_calls_and_keep_their_answers(
    handle: Handle, remote: RemoteEngine
) -> None:
    found = await asyncio.gather(*(remote.complete(_request(f"r{i}")) for i in range(9)))
    assert [one.text.split(":")[0] for one in found] == [f"r{i}" for i in range(9)]
    assert handle.calls == [4, 4, 1]
    assert handle.in_flight.under_way == 0


async def test_an_answer_does_not_wait_for_its_neighbours(
    engine: Engine, remote: RemoteEngine
) -> None:
    engine.gates["slow"] = asyncio.Event()
    slow = asyncio.ensure_future(remote.complete(_request("slow")))
    quick = asyncio.ensure_future(remote.complete(_request("quick")))
    assert (await quick).text.startswith("quick")
    assert not slow.done()
    engine.gates["slow"].set()
    assert (await slow).text.startswith("slow")


async def test_one_fault_fails_one_request(remote: RemoteEngine) -> None:
    names = ("fine", "gone", "broken", "good")
    found = await asyncio.gather(
        *(remote.complete(_request(name)) for name in names), return_exceptions=True
    )
    assert [type(one) for one in found] == [Generation, AdapterGone, EngineFailed, Generation]


async def test_who_leaves_a_group_is_stopped_alone(
    engine: Engine, handle: Handle, remote: RemoteEngine
) -> None:
    engine.gates = {"left": asyncio.Event(), "stays": asyncio.Event()}
    left = asyncio.ensure_future(remote.complete(_request("left")))
    stays = asyncio.ensure_future(remote.complete(_request("stays")))
    await _settle()
    left.cancel()
    await _settle()
    assert engine.cancelled == ["left"]
    assert handle.in_flight.under_way == 1
    engine.gates["stays"].set()
    assert (await stays).text.startswith("stays")


async def _read(remote: RemoteEngine, name: str) -> str:
    return "".join(
        [item.text async for item in remote.stream(_request(name)) if isinstance(item, Delta)]
    )


async def test_streams_come_whole_and_in_order_on_fewer_messages(
    handle: Handle, remote: RemoteEngine
) -> None:
    found = await asyncio.gather(*(_read(remote, f"r{i}") for i in range(20)))
    assert found == ["".join(f"r{i}:{word} " for word in WORDS) for i in range(20)]
    assert sum(len(parcel) for parcel in handle.parcels) == 20 * 7
    assert len(handle.parcels) < 40
    assert handle.in_flight.under_way == 0


async def test_every_call_sends_a_message_also_where_others_carried_its_items(
    handle: Handle,
) -> None:
    async def call(name: str) -> int:
        return len([p async for p in handle.in_flight.stream(_request(name), "gateway")])

    assert min(await asyncio.gather(*(call(f"r{i}") for i in range(20)))) >= 1


async def test_a_stream_that_is_left_stops_its_request_and_no_other(
    engine: Engine, remote: RemoteEngine
) -> None:
    engine.gates = {"left": asyncio.Event(), "stays": asyncio.Event()}
    items = remote.stream(_request("left"))
    assert isinstance(await anext(items), Delta)
    stays = asyncio.ensure_future(_read(remote, "stays"))
    await _settle()
    await items.aclose()
    await _settle()
    assert engine.cancelled == ["left"]
    engine.gates["stays"].set()
    assert (await stays) == "".join(f"stays:{word} " for word in WORDS)


@pytest.mark.parametrize(("name", "error"), [("gone", AdapterGone), ("broken", EngineFailed)])
async def test_faults_of_a_stream_are_raised_where_it_is_read(
    remote: RemoteEngine, name: str, error: type[Exception]
) -> None:
    other = asyncio.ensure_future(_read(remote, "other"))
    with pytest.raises(error):
        await _read(remote, name)
    assert (await other).startswith("other:one")


async def test_a_request_given_up_before_it_arrives_is_not_worked_on(
    engine: Engine, handle: Handle
) -> None:
    engine.gates["late"] = asyncio.Event()
    handle.in_flight.abort("late")
    assert [p async for p in handle.in_flight.stream(_request("late"), "gateway")] == [[]]
    assert handle.in_flight.under_way == 0


async def test_shared_work_is_in_no_requests_context() -> None:
    request = contextvars.ContextVar("request", default="none")
    seen = []

    async def look() -> None:
        seen.append(request.get())

    request.set("one client's")
    await apart(look())
    assert seen == ["none"]
