"""The stage batcher: batching, bounds, budget, breaker and failure rule, over small stages."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from serve_app.config import BreakerConfig, StageConfig
from serve_app.pipeline.batcher import BatchSizer, FairQueue, LocalStage, Pending, StageBatcher
from serve_app.pipeline.breaker import Breaker, BreakerState
from serve_app.pipeline.steps import CONTEXT, POLICY, ROUTE, Row, Step, run
from serve_app.protocol import Envelope, Sampling

DONE: tuple[Any, ...] = ([], [], None, None, None, [])


def _envelope(trace_id: str = "t") -> Envelope:
    return Envelope(trace_id, 0.0, "acme", {}, trace_id, [], Sampling())


async def test_what_queues_while_calls_are_in_flight_leaves_as_one_call() -> None:
    sizes: list[int] = []
    gate = asyncio.Event()

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        sizes.append(len(rows))
        await gate.wait()
        return [(model.encode(), None, None, []) for _, model in rows]

    batcher = StageBatcher(ROUTE, call, StageConfig(max_in_flight=1, max_batch=8))
    envelopes = [_envelope(str(n)) for n in range(10)]
    waiting = [asyncio.create_task(batcher(envelope)) for envelope in envelopes]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*waiting)
    assert sizes == [1, 8, 1]
    assert [envelope.embedding.decode() for envelope in envelopes] == [str(n) for n in range(10)]
    assert {envelope.spans[-1].batch for envelope in envelopes} == {1, 8}


async def _broken(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
    raise RuntimeError("boom")


async def test_a_failing_closed_stage_blocks_and_an_open_one_warns() -> None:
    closed, opened = _envelope(), _envelope()
    await StageBatcher(POLICY, _broken, StageConfig(on_failure="closed"))(closed)
    assert closed.refusal is not None
    assert closed.refusal.status == 503
    await StageBatcher(CONTEXT, _broken, StageConfig(on_failure="open"))(opened)
    assert opened.refusal is None
    assert opened.warnings == ["context: failed: RuntimeError; continued without it"]
    assert opened.spans[-1].outcome == "failed: RuntimeError"


async def test_a_late_stage_is_not_waited_for_and_changes_nothing() -> None:
    finish = asyncio.Event()

    async def slow(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        await finish.wait()
        return [(["late passage"], ["late prompt"], None, [])]

    batcher = StageBatcher(CONTEXT, slow, StageConfig(on_failure="open", budget_ms=10))
    envelope = _envelope()
    await batcher(envelope)
    assert envelope.spans[-1].outcome == "late"
    finish.set()
    await asyncio.sleep(0.01)
    assert envelope.prompt == []


async def test_a_step_that_ended_before_its_neighbour_keeps_its_start() -> None:
    gate = asyncio.Event()

    async def slow(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        await gate.wait()
        return [(b"", None, None, []) for _ in rows]

    async def fast(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        return []

    envelope = replace(_envelope(), received_at=time.time())
    first = StageBatcher(ROUTE, slow, StageConfig())
    second = StageBatcher(POLICY, fast, StageConfig(on_failure="open"))
    pending = first.start(envelope), second.start(envelope)
    await asyncio.sleep(0.2)
    gate.set()
    await first.finish(envelope, pending[0])
    await second.finish(envelope, pending[1])
    routing, policy = envelope.spans
    assert policy.start_ms is not None
    assert policy.start_ms + policy.ms < routing.ms


async def test_a_stage_that_loses_envelopes_is_a_fault() -> None:
    async def lossy(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        return []

    envelope = _envelope()
    await StageBatcher(POLICY, lossy, StageConfig())(envelope)
    assert envelope.refusal is not None


async def test_a_cancelled_request_frees_its_place() -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        seen.extend(model for _, model in rows)
        await gate.wait()
        return [(b"", None, None, []) for _ in rows]

    batcher = StageBatcher(ROUTE, call, StageConfig(max_in_flight=1))
    first = asyncio.create_task(batcher(_envelope("first")))
    second = asyncio.create_task(batcher(_envelope("second")))
    third = asyncio.create_task(batcher(_envelope("third")))
    await asyncio.sleep(0.01)
    second.cancel()
    gate.set()
    await asyncio.gather(first, third)
    with pytest.raises(asyncio.CancelledError):
        await second
    assert seen == ["first", "third"]


async def test_a_queue_at_its_bound_refuses_with_429() -> None:
    gate = asyncio.Event()

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        await gate.wait()
        return [DONE for _ in rows]

    batcher = StageBatcher(POLICY, call, StageConfig(max_in_flight=1, max_queue=2))
    waiting = [asyncio.create_task(batcher(_envelope())) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert batcher.full
    refused = _envelope()
    await batcher(refused)
    assert refused.refusal is not None
    assert (refused.refusal.status, refused.spans[-1].outcome) == (429, "queue full")
    gate.set()
    await asyncio.gather(*waiting)
    assert not batcher.full


async def test_an_open_breaker_spares_the_stage_until_a_probe_succeeds() -> None:
    calls, good = 0, False

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        nonlocal calls
        calls += 1
        if not good:
            raise RuntimeError("down")
        return [DONE for _ in rows]

    config = StageConfig(breaker=BreakerConfig(failures=3, cool_s=0.05))
    batcher = StageBatcher(POLICY, call, config)
    for _ in range(6):
        envelope = _envelope()
        await batcher(envelope)
    assert calls == 3
    assert envelope.spans[-1].outcome == "breaker open"
    await asyncio.sleep(0.06)
    good = True
    for _ in range(2):
        envelope = _envelope()
        await batcher(envelope)
    assert (calls, envelope.refusal, envelope.spans[-1].outcome) == (5, None, "ok")


def test_the_breaker_hands_out_one_probe_at_a_time() -> None:
    breaker = Breaker(BreakerConfig(failures=2, cool_s=10.0))
    for now in (0.0, 1.0):
        assert breaker.allows(now)
        breaker.record(False, now)
    assert breaker.state(5.0) is BreakerState.OPEN
    assert not breaker.allows(5.0)
    assert breaker.state(11.0) is BreakerState.HALF_OPEN
    assert breaker.allows(11.0)
    assert not breaker.allows(12.0)
    breaker.record(False, 13.0)
    assert breaker.state(14.0) is BreakerState.OPEN
    assert breaker.allows(23.0)
    breaker.record(True, 24.0)
    assert breaker.state(24.0) is BreakerState.CLOSED


async def test_one_bad_envelope_does_not_fail_its_batch() -> None:
    class Picky:
        async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
            if any(envelope.attributes.get("bad") for envelope in batch):
                raise KeyError("bad")
            for envelope in batch:
                envelope.rules.append("seen")
            return batch

    rows: list[Row] = [([], {}), ([], {"bad": "1"}), ([], {})]
    found = await run(Picky(), POLICY, rows, [time.time() + 9] * 3)
    assert [getattr(row, "reason", row[0] if isinstance(row, tuple) else "") for row in found] == [
        ["seen"],
        "KeyError",
        ["seen"],
    ]


async def test_an_envelope_past_its_deadline_is_not_worked_on() -> None:
    class Counting:
        seen = 0

        async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
            self.seen += len(batch)
            return batch

    stage = Counting()
    now = time.time()
    found = await run(stage, POLICY, [([], {}), ([], {})], [now - 1, now + 9])
    assert stage.seen == 1
    assert getattr(found[0], "reason", None) == "late"


async def test_in_process_the_same_rules_hold_without_a_queue() -> None:
    calls: list[int] = []

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        calls.append(len(rows))
        if len(calls) > 2:
            raise RuntimeError("down")
        return [DONE for _ in rows]

    config = StageConfig(breaker=BreakerConfig(failures=2, cool_s=60))
    batcher = LocalStage(POLICY, call, config)
    outcomes = []
    for _ in range(5):
        envelope = _envelope()
        await batcher(envelope)
        outcomes.append((envelope.spans[-1].outcome, envelope.refusal is None))
    assert calls == [1, 1, 1, 1]
    assert outcomes == [
        ("ok", True),
        ("ok", True),
        ("failed: RuntimeError", False),
        ("failed: RuntimeError", False),
        ("breaker open", False),
    ]


async def test_a_call_waits_for_its_share_of_the_load_and_no_longer_than_it_may() -> None:
    sizes: list[int] = []

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        sizes.append(len(rows))
        return [DONE for _ in rows]

    sizer = BatchSizer(stages=2)
    batcher = StageBatcher(
        POLICY, call, StageConfig(linger_ms=60_000, budget_ms=100_000), sizer=sizer
    )
    await batcher(_envelope())
    assert sizes == [1]
    sizer.in_progress = 7
    waiting = [asyncio.create_task(batcher(_envelope())) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert sizes == [1]
    waiting.append(asyncio.create_task(batcher(_envelope())))
    waiting.append(asyncio.create_task(batcher(_envelope())))
    await asyncio.gather(*waiting)
    assert sizes == [1, 6]
    sizer.in_progress = 1000
    brief = StageBatcher(POLICY, call, StageConfig(linger_ms=5), sizer=sizer)
    await brief(_envelope())
    assert sizes == [1, 6, 1]


async def test_a_tenant_that_fills_a_queue_keeps_no_other_waiting() -> None:
    gate, calls = asyncio.Event(), list[list[str]]()

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        calls.append([row[step.reads.index("attributes")]["who"] for row in rows])
        await gate.wait()
        return [DONE for _ in rows]

    def of(tenant: str) -> Envelope:
        envelope = _envelope()
        envelope.tenant, envelope.attributes = tenant, {"who": tenant}
        return envelope

    batcher = StageBatcher(POLICY, call, StageConfig(max_in_flight=1, max_batch=2))
    asked = [asyncio.create_task(batcher(of("noisy"))) for _ in range(9)]
    await asyncio.sleep(0.01)
    asked.append(asyncio.create_task(batcher(of("quiet"))))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*asked)
    assert calls[1] == ["noisy", "quiet"], "the next call takes one of each"


def test_a_fair_queue_gives_each_tenant_its_turn_and_each_its_order() -> None:
    queue = FairQueue()
    items = [Pending(float(n), (), 0.0, None) for n in range(8)]
    for tenant, item in zip("aaaabbac", items, strict=True):
        queue.append(tenant, item)
    assert queue.first is items[0]
    taken = [int(one.started) for size in (2, 3, 10) for one in queue.take(size)]
    assert taken == [0, 4, 7, 1, 5, 2, 3, 6]
    assert queue.count == 0
    assert queue.take(1) == []


class Noting(Breaker):
    """Records each outcome it is given."""

    def __init__(self) -> None:
        super().__init__(BreakerConfig())
        self.told: list[bool] = []

    def record(self, ok: bool, now: float) -> None:
        self.told.append(ok)
        super().record(ok, now)


async def test_what_only_waited_says_nothing_of_the_stage() -> None:
    """A lane that is full of slow texts must not open the circuit for everybody."""
    gate, breaker = asyncio.Event(), Noting()

    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        await gate.wait()
        return [DONE for _ in rows]

    config = StageConfig(max_in_flight=1, max_batch=1, budget_ms=50)
    batcher = StageBatcher(POLICY, call, config, breaker=breaker)
    envelopes = [_envelope() for _ in range(8)]
    await asyncio.gather(*(batcher(one) for one in envelopes))
    assert breaker.told == [False], "the one that was sent"
    assert [one.spans[-1].outcome for one in envelopes] == ["late"] + ["queue full"] * 7
    assert [one.refusal.status for one in envelopes if one.refusal] == [503] + [429] * 7
    gate.set()
