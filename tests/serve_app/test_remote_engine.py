"""The engine from the gateway's side and the replica's, joined by a socket, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from cluster.records.adapter import ServedAdapter
from serve_app.engine.in_flight import InFlight
from serve_app.generation.providers.placement import ranked
from serve_app.generation.providers.vllm_replicas import VLLMReplicas
from serve_app.protocol import (
    AdapterGone,
    Delta,
    EngineFailed,
    Generation,
    GenerationRequest,
    Sampling,
)
from serve_app.rpc.pool import Pool
from serve_app.rpc.server import Address, Server
from tests.fakes.targets import target
from tests.waiting import until

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


def _request(name: str) -> GenerationRequest:
    return GenerationRequest(name, ({"role": "user", "content": "hi"},), Sampling(), target())


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def in_flight(engine: Engine) -> InFlight:
    return InFlight(engine.complete, engine.stream)


@pytest.fixture
async def remote(in_flight: InFlight) -> AsyncIterator[VLLMReplicas]:
    server = Server("r", in_flight.methods)

    async def discover() -> list[Address]:
        return [await server.address("127.0.0.1")]

    pool = Pool("engine", discover)
    yield VLLMReplicas(pool, lambda _name: 0.0)
    await pool.close()
    await server.leave()


async def test_requests_that_leave_together_keep_their_answers(
    in_flight: InFlight, remote: VLLMReplicas
) -> None:
    found = await asyncio.gather(*(remote.complete(_request(f"r{i}")) for i in range(9)))
    assert [one.text.split(":")[0] for one in found] == [f"r{i}" for i in range(9)]
    assert in_flight.under_way == 0


async def test_an_answer_does_not_wait_for_its_neighbours(
    engine: Engine, remote: VLLMReplicas
) -> None:
    engine.gates["slow"] = asyncio.Event()
    slow = asyncio.ensure_future(remote.complete(_request("slow")))
    quick = asyncio.ensure_future(remote.complete(_request("quick")))
    assert (await quick).text.startswith("quick")
    assert not slow.done()
    engine.gates["slow"].set()
    assert (await slow).text.startswith("slow")


async def test_one_fault_fails_one_request(remote: VLLMReplicas) -> None:
    names = ("fine", "gone", "broken", "good")
    found = await asyncio.gather(
        *(remote.complete(_request(name)) for name in names), return_exceptions=True
    )
    assert [type(one) for one in found] == [Generation, AdapterGone, EngineFailed, Generation]


class Holder(Engine):
    """Holds an adapter, or does not."""

    def __init__(self, name: str, holds: bool) -> None:
        super().__init__()
        self.name, self.holds, self.asked = name, holds, 0

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        self.asked += 1
        if not self.holds:
            raise AdapterGone("care@1")
        async for item in super().stream(request):
            yield replace(item, replica=self.name) if isinstance(item, Generation) else item


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("holder", [0, 1, 2, None])
async def test_an_adapter_is_found_wherever_it_is_held(holder: int | None, streamed: bool) -> None:
    """A replica that cannot load what gateways send it keeps no answer from the others' users."""
    names = ranked("care", ["r0", "r1", "r2"])
    engines = [Holder(name, number == holder) for number, name in enumerate(names)]
    flights = [InFlight(e.complete, e.stream, replica=e.name) for e in engines]
    servers = [Server(e.name, f.methods) for e, f in zip(engines, flights, strict=True)]

    async def discover() -> list[Address]:
        return [await server.address("127.0.0.1") for server in servers]

    pool = Pool("engine", discover)
    remote = VLLMReplicas(pool, lambda _name: 0.0)
    request = replace(_request("one"), target=target(ServedAdapter("care", 1, 7, "/care", "d")))

    async def ask() -> str:
        if not streamed:
            return (await remote.complete(request)).text
        found = [item async for item in remote.stream(request)]
        return "".join(item.text for item in found if isinstance(item, Delta))

    try:
        if holder is None:
            with pytest.raises(AdapterGone):
                await ask()
            assert [engine.asked for engine in engines] == [1, 1, 1]
        else:
            for _ in range(2):
                assert (await ask()).startswith("one:one")
            asked = [1 if number < holder else 0 for number in range(3)]
            asked[holder] = 2
            assert [engine.asked for engine in engines] == asked
    finally:
        await pool.close()
        for server in servers:
            await server.leave()


async def test_who_leaves_is_stopped_alone(
    engine: Engine, in_flight: InFlight, remote: VLLMReplicas
) -> None:
    engine.gates = {"left": asyncio.Event(), "stays": asyncio.Event()}
    left = asyncio.ensure_future(remote.complete(_request("left")))
    stays = asyncio.ensure_future(remote.complete(_request("stays")))
    await until(lambda: in_flight.under_way == 2)
    left.cancel()
    await until(lambda: engine.cancelled == ["left"])
    await until(lambda: in_flight.under_way == 1)
    engine.gates["stays"].set()
    assert (await stays).text.startswith("stays")


async def _read(remote: VLLMReplicas, name: str) -> str:
    return "".join(
        [item.text async for item in remote.stream(_request(name)) if isinstance(item, Delta)]
    )


async def test_streams_come_whole_and_in_order(in_flight: InFlight, remote: VLLMReplicas) -> None:
    found = await asyncio.gather(*(_read(remote, f"r{i}") for i in range(20)))
    assert found == ["".join(f"r{i}:{word} " for word in WORDS) for i in range(20)]
    assert in_flight.under_way == 0


async def test_pieces_of_a_word_leave_the_replica_as_one() -> None:
    said = ["un", "believ", "able", ", ", "really", " \u4f60", "\u597d", "x" * 30, "y"]

    async def speak(_request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        for piece in said:
            yield Delta(piece)
        yield Generation("", "base", 1, 6, "stop", 0.0, 0.0, None, 0.0, "r")

    async def silent(_request: GenerationRequest) -> Generation:
        raise NotImplementedError

    items = [item async for item in InFlight(silent, speak).stream(_request("r"))]
    assert [item.text for item in items if isinstance(item, Delta)] == [
        "unbelievable, ",
        "really \u4f60",
        "\u597d",
        "x" * 30,
        "y",
    ]
    assert isinstance(items[-1], Generation)


async def test_a_stream_that_is_left_stops_its_request_and_no_other(
    engine: Engine, in_flight: InFlight, remote: VLLMReplicas
) -> None:
    engine.gates = {"left": asyncio.Event(), "stays": asyncio.Event()}
    items = remote.stream(_request("left"))
    assert isinstance(await anext(items), Delta)
    stays = asyncio.ensure_future(_read(remote, "stays"))
    await until(lambda: in_flight.under_way == 2)
    await items.aclose()
    await until(lambda: engine.cancelled == ["left"])
    engine.gates["stays"].set()
    assert (await stays) == "".join(f"stays:{word} " for word in WORDS)


async def test_an_arrived_message_is_announced_before_it_is_read(
    engine: Engine, remote: VLLMReplicas
) -> None:
    came = list[Delta | Generation]()
    async with aclosing(remote.stream(_request("ahead"), came.append)) as items:
        first = await anext(items)
        await until(lambda: isinstance(came[-1], Generation))
        assert [first, *[item async for item in items]] == came
    assert len(came) > 2


@pytest.mark.parametrize(("name", "error"), [("gone", AdapterGone), ("broken", EngineFailed)])
async def test_faults_of_a_stream_are_raised_where_it_is_read(
    remote: VLLMReplicas, name: str, error: type[Exception]
) -> None:
    other = asyncio.ensure_future(_read(remote, "other"))
    with pytest.raises(error):
        await _read(remote, name)
    assert (await other).startswith("other:one")


async def test_a_replica_is_made_ready_for_the_adapter_that_is_asked_for() -> None:
    held: list[str] = []

    async def ready(adapter: ServedAdapter) -> None:
        held.append(adapter.label)

    engine = Engine()
    in_flight = InFlight(engine.complete, engine.stream, ready)
    adapter = ServedAdapter("a", 1, 1, "/a", "d")
    assert await in_flight.complete(replace(_request("x"), target=target(adapter)))
    assert [item async for item in in_flight.stream(replace(_request("y"), target=target(adapter)))]
    assert await in_flight.complete(_request("z"))
    assert held == ["a@1", "a@1"]
