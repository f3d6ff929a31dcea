"""Rollouts at the gateway: who gets the candidate, shadows, and what is counted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from cluster.control.protocol import Split
from cluster.rollout.evidence import Evidence
from cluster.rollout.state import chosen
from tests.serve_app.test_access import _as
from tests.serve_app.test_gateway import GOOD, V2, World
from tests.waiting import until

CHAT = "/v1/chat/completions"


@pytest.fixture
def world() -> World:
    world = World()
    world.engine.residents.add(V2)
    return world


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=_as("hr-user")
    ) as client:
        yield client


def _split(world: World, percent: float, *, shadow: bool = False) -> None:
    split = Split(9, 1, V2, percent, shadow)
    world.table = replace(world.table, splits={"inventory": split})


def _seen(world: World) -> Evidence:
    reports = world.road.trials.reports("g")
    assert {(r.rollout, r.phase) for r in reports} <= {(9, 1)}
    return sum((r.seen for r in reports), Evidence())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_user_stays_with_one_version(
    world: World, client: httpx.AsyncClient, stream: bool
) -> None:
    _split(world, 50)
    for number in range(20):
        user = f"u{number}"
        body = {**GOOD, "model": "inventory", "user": user, "stream": stream}
        for _ in range(2):
            assert (await client.post(CHAT, json=body)).status_code == 200
        wanted = "inventory@2" if chosen(9, user, 50) else "inventory@1"
        assert [r.adapter.label for r in world.engine.requests[-2:] if r.adapter] == [wanted] * 2
    seen = _seen(world)
    mine = sum(chosen(9, f"u{number}", 50) for number in range(20))
    assert 0 < mine < 20
    assert (seen.candidate.errors.n, seen.baseline.errors.n) == (2 * mine, 40 - 2 * mine)
    assert seen.candidate.confidence.mean == pytest.approx(0.990, abs=0.001)
    assert _seen(world) == Evidence(), "what was reported is not reported again"


async def test_whoever_names_a_version_gets_that_one(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 100)
    answer = await client.post(CHAT, json={**GOOD, "model": "inventory@1"})
    assert answer.headers["x-headrace-model"] == "inventory@1"
    assert (await client.post(CHAT, json={**GOOD, "model": "inventory@2"})).status_code == 404
    answer = await client.post(CHAT, json={**GOOD, "model": "inventory"})
    assert answer.headers["x-headrace-model"] == "inventory@2"


async def test_a_shadow_is_tried_and_shown_to_nobody(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 100, shadow=True)
    answer = await client.post(CHAT, json={**GOOD, "model": "inventory"})
    assert answer.headers["x-headrace-model"] == "inventory@1"
    await until(lambda: len(world.engine.requests) == 2)
    shadow = world.engine.requests[1]
    assert shadow.adapter == V2
    assert shadow.messages == world.engine.requests[0].messages
    await until(lambda: not world.road.trials._shadows)
    seen = _seen(world)
    assert (seen.baseline.errors.n, seen.candidate.errors.n) == (1, 1)
    assert len(world.audited) == 1


async def test_shadows_do_not_crowd_users_out(world: World, client: httpx.AsyncClient) -> None:
    _split(world, 100, shadow=True)
    free = asyncio.Event()
    calls = 0

    async def wait() -> None:
        nonlocal calls
        calls += 1
        if world.engine.requests[-1].request_id.endswith("-shadow"):
            await free.wait()

    world.engine.wait = wait
    for _ in range(30):
        answer = await client.post(CHAT, json={**GOOD, "model": "inventory"})
        assert answer.status_code == 200
        await asyncio.sleep(0)
    assert sum(r.request_id.endswith("-shadow") for r in world.engine.requests) == 8
    free.set()
    await until(lambda: not world.road.trials._shadows)
    seen = _seen(world)
    assert seen.baseline.errors.n == seen.candidate.errors.n == 8


async def test_an_engine_fault_counts_against_the_version_it_struck(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 100)

    async def fail() -> None:
        raise RuntimeError("out of memory")

    world.engine.wait = fail
    assert (await client.post(CHAT, json={**GOOD, "model": "inventory"})).status_code == 502
    seen = _seen(world)
    assert (seen.candidate.errors.n, seen.candidate.errors.mean) == (1, 1.0)
    assert seen.baseline.errors.n == 0


async def test_feedback_is_recorded_and_counts(world: World, client: httpx.AsyncClient) -> None:
    _split(world, 50)
    for model, disliked in (("inventory@2", True), ("inventory@2", False), ("inventory@1", False)):
        body = {"trace_id": "tr-1", "model": model, "disliked": disliked}
        answer = await client.post("/v1/feedback", json=body)
        assert (answer.status_code, answer.json()["counted"]) == (200, True)
    escalated = {"trace_id": "tr-1", "model": "inventory@1", "escalated": True}
    assert (await client.post("/v1/feedback", json=escalated)).status_code == 200
    seen = _seen(world)
    assert (seen.candidate.disliked.n, seen.candidate.disliked.mean) == (2, 0.5)
    assert (seen.baseline.disliked.n, seen.baseline.escalated.mean) == (1, 1.0)
    assert world.audited[0].metadata == {"feedback_on": "tr-1", "disliked": "true"}
    other = {"trace_id": "tr-1", "model": "inventory@7", "disliked": True}
    assert not (await client.post("/v1/feedback", json=other)).json()["counted"]
    assert (
        await client.post("/v1/feedback", json={"trace_id": "x", "model": "y"})
    ).status_code == 400
    stranger = await client.post("/v1/feedback", json=other, headers=_as("hr-rival"))
    assert stranger.status_code == 404
