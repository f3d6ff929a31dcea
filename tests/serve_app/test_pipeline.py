"""The pipeline: what is recorded when a request does not take every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from cluster.control.protocol import RoutingTable
from cluster.records.usage import TokenUsage
from serve_app.config import CacheConfig, StageConfig
from serve_app.generation.attempts import Attempts
from serve_app.generation.cache import ResponseCache
from serve_app.generation.providers.base import OnItem, ignore
from serve_app.pipeline.batcher import StageBatcher
from serve_app.pipeline.pieces import Piece
from serve_app.pipeline.pipeline import Pipeline
from serve_app.pipeline.steps import AUDIT, STEPS, Row, Step, run
from serve_app.protocol import (
    Delta,
    Envelope,
    Generation,
    GenerationRequest,
    Sampling,
)
from serve_app.stages.governance import Governance
from tests.fakes.engine import FakeEngine
from tests.fakes.targets import targets

SECRET = "415-555-0132"


class Recorder:
    """Stages that pass everything on, real governance, and a list for audit."""

    def __init__(self, broken: str = "", stuck: str = "") -> None:
        self.recorded: list[Envelope] = []
        self.broken = broken
        self.stuck = stuck

    async def call(self, step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        if step.name == self.broken:
            raise RuntimeError("down")
        if step.name == self.stuck:
            await asyncio.Event().wait()
        if step is AUDIT:
            self.recorded += [step.open(row) for row in rows]
        if step.stage == "governance":
            return await run(Governance(), step, rows, deadlines)
        return [step.close(step.open(row), 0) for row in rows]

    def pipeline(self, engine: Any) -> Pipeline:
        runners = {
            name: StageBatcher(step, self.call, StageConfig()) for name, step in STEPS.items()
        }
        cache = ResponseCache(CacheConfig(), "p")
        return Pipeline(runners, Attempts(engine, lambda: RoutingTable(1), cache, targets()))


class Hanging(FakeEngine):
    """Writes a word, then nothing until it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = False

    async def complete(self, request: GenerationRequest) -> Generation:
        return [item async for item in self.stream(request)][-1]  # type: ignore[return-value]

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        try:
            yield Delta("wait ")
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


def _envelope() -> Envelope:
    messages = [{"role": "user", "content": f"call {SECRET}"}]
    return Envelope("tr-1", 0.0, "acme", {}, "auto", messages, Sampling())


async def _recorded(recorder: Recorder) -> Envelope:
    for _ in range(200):
        if recorder.recorded:
            break
        await asyncio.sleep(0.005)
    (found,) = recorder.recorded
    return found


async def test_a_client_that_goes_away_frees_the_engine_and_leaves_a_trace() -> None:
    recorder, engine = Recorder(), Hanging()
    task = asyncio.create_task(recorder.pipeline(engine).answer(_envelope()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = await _recorded(recorder)
    assert engine.cancelled
    assert found.refusal is not None
    assert found.refusal.status == 499
    assert SECRET not in str(found)


async def test_a_stream_closed_half_way_frees_the_engine_and_leaves_a_trace() -> None:
    recorder, engine = Recorder(), Hanging()
    items = recorder.pipeline(engine).stream(_envelope())
    await anext(items)
    await anext(items)
    await items.aclose()
    found = await _recorded(recorder)
    assert engine.cancelled
    assert found.refusal is not None
    assert found.refusal.code == "client_closed_request"


async def test_text_that_governance_never_saw_is_not_recorded() -> None:
    recorder = Recorder(broken="governance")
    finished, _ = await recorder.pipeline(FakeEngine()).answer(_envelope())
    assert finished.refusal is not None
    assert finished.refusal.status == 503
    found = await _recorded(recorder)
    assert SECRET not in str(found)
    assert "withheld" in found.messages[0]["content"]


async def test_an_answer_that_governance_never_saw_is_neither_recorded_nor_shown() -> None:
    recorder = Recorder(broken="governance_out")
    finished, text = await recorder.pipeline(FakeEngine(f"call {SECRET}")).answer(_envelope())
    assert finished.refusal is not None
    assert (finished.refusal.status, text) == (503, "")
    found = await _recorded(recorder)
    assert SECRET not in str(found)
    assert found.generation is not None
    assert "withheld" in found.generation.text
    assert found.messages == finished.messages


async def test_a_client_that_goes_away_before_the_answer_is_checked_leaves_none_of_it() -> None:
    recorder = Recorder(stuck="governance_out")
    pipeline = recorder.pipeline(FakeEngine(f"call {SECRET}"))
    task = asyncio.create_task(pipeline.answer(_envelope()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = await _recorded(recorder)
    assert SECRET not in str(found)
    assert found.generation is not None
    assert found.generation.output_tokens == 7


async def test_routing_that_fails_open_leaves_the_clients_choice() -> None:
    recorder = Recorder()
    finished, text = await recorder.pipeline(FakeEngine()).answer(_envelope())
    assert finished.route is None
    assert finished.generation is not None
    assert finished.generation.version == "base"
    assert text == finished.answer


class Failing(FakeEngine):
    """Breaks after its first word."""

    async def complete(self, request: GenerationRequest) -> Generation:
        raise RuntimeError("segfault in 0x415")

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        yield Delta("wait for it, ")
        raise RuntimeError("segfault in 0x415")


async def test_an_engines_fault_is_an_answer_and_a_trace() -> None:
    recorder = Recorder()
    finished, _ = await recorder.pipeline(Failing()).answer(_envelope())
    assert finished.refusal is not None
    assert (finished.refusal.status, finished.refusal.code) == (502, "engine_error")
    assert "segfault" not in finished.refusal.message
    assert (await _recorded(recorder)).refusal == finished.refusal


class Ahead(FakeEngine):
    """Has written everything by the time its first word is read."""

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        for written in range(1, 41):
            on_item(Delta("word ", (), 7, written))
        yield Delta("word ", (), 7, 1)
        await asyncio.Event().wait()


async def test_a_client_that_stops_reading_pays_for_what_was_written() -> None:
    recorder = Recorder()
    items = recorder.pipeline(Ahead()).stream(_envelope())
    assert isinstance(await anext(items), Envelope)
    assert await anext(items) == Piece("word ")
    await items.aclose()
    assert (await _recorded(recorder)).usage == TokenUsage("base", 7, 40)


async def test_a_fault_in_a_stream_follows_what_was_said() -> None:
    recorder = Recorder()
    items = [item async for item in recorder.pipeline(Failing()).stream(_envelope())]
    assert isinstance(items[-1], Envelope)
    assert items[-1].refusal is not None
    assert items[-1].refusal.status == 502
    assert "".join(item.text for item in items if isinstance(item, Piece)) == "wait for it, "
    assert (await _recorded(recorder)).refusal == items[-1].refusal
