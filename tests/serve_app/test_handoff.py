import asyncio

import pytest

from serve_app.config import StageConfig
from serve_app.handoff import Handoff
from serve_app.protocol import Envelope, Sampling


def _envelope(trace_id: str = "t") -> Envelope:
    return Envelope(trace_id, 0.0, "acme", {}, "auto", [], Sampling())


async def test_what_queues_while_calls_are_in_flight_leaves_as_one_call() -> None:
    sizes: list[int] = []
    gate = asyncio.Event()

    async def stage(batch: list[Envelope]) -> list[Envelope]:
        sizes.append(len(batch))
        await gate.wait()
        return batch

    hop = Handoff("routing", stage, StageConfig(max_in_flight=1, max_batch=8))
    waiting = [asyncio.create_task(hop(_envelope(str(n)))) for n in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    done = await asyncio.gather(*waiting)
    assert sizes == [1, 8, 1]
    assert [envelope.trace_id for envelope in done] == [str(n) for n in range(10)]
    assert {envelope.spans[-1].batch for envelope in done} == {1, 8}


async def test_a_failing_closed_stage_blocks_and_an_open_one_warns() -> None:
    async def broken(batch: list[Envelope]) -> list[Envelope]:
        raise RuntimeError("boom")

    closed = await Handoff("policy", broken, StageConfig(on_failure="closed"))(_envelope())
    assert closed.block is not None
    assert closed.block.status == 503
    opened = await Handoff("context", broken, StageConfig(on_failure="open"))(_envelope())
    assert opened.block is None
    assert opened.warnings == ["context: failed: RuntimeError; continued without it"]
    assert opened.spans[-1].outcome == "failed: RuntimeError"


async def test_a_late_stage_is_not_waited_for() -> None:
    async def slow(batch: list[Envelope]) -> list[Envelope]:
        await asyncio.Event().wait()
        return batch

    hop = Handoff("context", slow, StageConfig(on_failure="open", budget_ms=10))
    assert (await hop(_envelope())).spans[-1].outcome == "late"


async def test_a_stage_that_loses_envelopes_is_a_fault() -> None:
    async def lossy(batch: list[Envelope]) -> list[Envelope]:
        return batch[1:]

    found = await Handoff("audit", lossy, StageConfig())(_envelope())
    assert found.block is not None


async def test_a_cancelled_request_frees_its_place() -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    async def stage(batch: list[Envelope]) -> list[Envelope]:
        seen.extend(envelope.trace_id for envelope in batch)
        await gate.wait()
        return batch

    hop = Handoff("policy", stage, StageConfig(max_in_flight=1))
    first = asyncio.create_task(hop(_envelope("first")))
    second = asyncio.create_task(hop(_envelope("second")))
    third = asyncio.create_task(hop(_envelope("third")))
    await asyncio.sleep(0.01)
    second.cancel()
    gate.set()
    await asyncio.gather(first, third)
    with pytest.raises(asyncio.CancelledError):
        await second
    assert seen == ["first", "third"]
