"""Rollouts at the gateway: who gets the candidate, shadows, and what is counted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from cluster.control.protocol import Split
from cluster.records.trace import FeedbackTrace
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.groups import group_of
from cluster.rollout.state import chosen
from cluster.types import AdapterVersion
from serve_app.generation import attempts
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
    reports = world.attempts.trials.reports("g")
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
    theirs = {group_of(f"u{number}") for number in range(20) if chosen(9, f"u{number}", 50)}
    assert seen.candidate.groups == sum(1 << group for group in theirs)
    assert seen.candidate.confidence.mean == pytest.approx(0.990, abs=0.001)
    assert _seen(world) == Evidence(), "what was reported is not reported again"


async def test_a_request_that_names_a_version_gets_that_version(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 100)
    answer = await client.post(CHAT, json={**GOOD, "model": "inventory@1"})
    assert answer.headers["x-headrace-model"] == "inventory@1"
    assert (await client.post(CHAT, json={**GOOD, "model": "inventory@2"})).status_code == 404
    answer = await client.post(CHAT, json={**GOOD, "model": "inventory"})
    assert answer.headers["x-headrace-model"] == "inventory@2"
    # Nobody drew it for them: it tells nothing of how users fare who get one or the other.
    seen = _seen(world)
    assert (seen.baseline.errors.n, seen.candidate.errors.n) == (0, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_where_a_candidate_is_not_to_be_had_the_live_version_answers(
    world: World, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(attempts, "_WAIT_BUDGET_S", 0.01)
    world.engine.residents.discard(V2.int_id)
    _split(world, 100)
    body = {**GOOD, "model": "inventory", "stream": stream}
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert [r.adapter.label for r in world.engine.requests if r.adapter][-1] == "inventory@1"
    assert _seen(world) == Evidence(), "that is no fault of its own, nor was the live one drawn"
    _split(world, 100, shadow=True)
    assert (await client.post(CHAT, json=body)).status_code == 200
    await until(lambda: not world.attempts.trials._shadows)
    assert _seen(world) == Evidence()


async def test_the_wait_for_its_turn_is_not_the_versions_latency(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 100)
    world.engine.waited_ms = 1.5
    assert (await client.post(CHAT, json={**GOOD, "model": "inventory"})).status_code == 200
    assert _seen(world).candidate.latency_ms.mean == 0.5


async def test_a_shadow_answer_is_recorded_and_not_returned(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 100, shadow=True)
    answer = await client.post(CHAT, json={**GOOD, "model": "inventory"})
    assert answer.headers["x-headrace-model"] == "inventory@1"
    await until(lambda: len(world.engine.requests) == 2)
    shadow = world.engine.requests[1]
    assert shadow.adapter == V2
    assert shadow.messages == world.engine.requests[0].messages
    await until(lambda: not world.attempts.trials._shadows)
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
    await until(lambda: not world.attempts.trials._shadows)
    seen = _seen(world)
    assert seen.baseline.errors.n == seen.candidate.errors.n == 8


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_candidate_fails_on_the_live_version_answers(
    world: World, client: httpx.AsyncClient, stream: bool
) -> None:
    """Its failure counts, and its user notices nothing of it."""
    _split(world, 100)

    async def fail() -> None:
        if world.engine.requests[-1].adapter == V2:
            raise RuntimeError("out of memory")

    world.engine.wait = fail
    body = {**GOOD, "model": "inventory", "stream": stream}
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert [r.adapter.label for r in world.engine.requests if r.adapter] == [
        "inventory@2",
        "inventory@1",
    ]
    seen = _seen(world)
    assert (seen.candidate.errors.n, seen.candidate.errors.mean) == (1, 1.0)
    assert seen.baseline.errors.n == 0, "the live version was drawn for no user"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_both_versions_fail_on_is_no_evidence_against_either(
    world: World, client: httpx.AsyncClient, stream: bool
) -> None:
    """A caller that finds a request which the engine cannot do must not refuse a candidate."""
    _split(world, 100)

    async def fail() -> None:
        raise RuntimeError("this prompt")

    world.engine.wait = fail
    body = {**GOOD, "model": "inventory", "stream": stream}
    for number in range(20):
        answer = await client.post(CHAT, json={**body, "user": f"invented-{number}"})
        assert answer.status_code == 502 or "engine_error" in answer.text
    assert _seen(world) == Evidence()


async def test_what_a_split_of_users_fails_on_is_evidence_against_neither_version(
    world: World, client: httpx.AsyncClient
) -> None:
    """Else a caller could make the live version look as bad as a candidate that is worse."""
    _split(world, 50)

    async def fail() -> None:
        raise RuntimeError("this prompt")

    world.engine.wait = fail
    for number in range(20):
        body = {**GOOD, "model": "inventory", "user": f"u{number}"}
        assert (await client.post(CHAT, json=body)).status_code == 502
    assert _seen(world) == Evidence()


async def test_accounts_set_aside_get_the_live_version(
    world: World, client: httpx.AsyncClient
) -> None:
    body = {**GOOD, "model": "inventory"}
    for aside, wanted in (
        (frozenset[str](), "inventory@2"),
        (frozenset({"rival"}), "inventory@2"),
        (frozenset({"acme"}), "inventory@1"),
        (frozenset({"acme/k1"}), "inventory@1"),
    ):
        split = Split(9, 1, V2, 100, False, aside)
        world.table = replace(world.table, splits={"inventory": split})
        answer = await client.post(CHAT, json=body)
        assert answer.headers["x-headrace-model"] == wanted
    [report] = world.attempts.trials.reports("g")
    assert report.account == "acme/k1"


class Judge:
    """The control plane's part: notes what it is told, and says it counted."""

    def __init__(self) -> None:
        self.judged: list[tuple[str, str, VariantStats]] = []

    async def record_outcome(
        self, trace_id: str, version: AdapterVersion, found: VariantStats
    ) -> bool:
        if trace_id == "down":
            raise ConnectionError("restarting")
        self.judged.append((trace_id, str(version), found))
        return True


async def test_reports_of_a_trial_name_the_version_that_answered(
    world: World, client: httpx.AsyncClient
) -> None:
    _split(world, 50)
    for number in range(10):
        body = {**GOOD, "model": "inventory", "user": f"u{number}"}
        assert (await client.post(CHAT, json=body)).status_code == 200
    [report] = world.attempts.trials.reports("g")
    assert list(report.answered) == [envelope.trace_id for envelope in world.audited]
    sides = ["candidate" if chosen(9, f"u{n}", 50) else "baseline" for n in range(10)]
    assert [given.side for given in report.answered.values()] == sides
    groups = [group_of(f"u{n}") for n in range(10)]
    assert [given.group for given in report.answered.values()] == groups
    _split(world, 100, shadow=True)
    await client.post(CHAT, json={**GOOD, "model": "inventory"})
    await until(lambda: not world.attempts.trials._shadows)
    assert all(not report.answered for report in world.attempts.trials.reports("g"))


async def test_a_report_that_failed_is_sent_again(world: World, client: httpx.AsyncClient) -> None:
    _split(world, 50)
    for _ in range(2):
        assert (await client.post(CHAT, json={**GOOD, "model": "inventory"})).status_code == 200
    first = world.attempts.trials.reports("g")
    world.attempts.trials.requeue(first)
    assert (await client.post(CHAT, json={**GOOD, "model": "inventory"})).status_code == 200
    again, later = world.attempts.trials.reports("g")
    assert [again] == first
    assert again.number < later.number
    assert len(later.answered) == 1
    assert world.attempts.trials.reports("g") == []


async def test_feedback_is_recorded_and_handed_on() -> None:
    judge = Judge()
    world = World(rollouts=judge)
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=_as("hr-user")
    ) as client:

        async def say(**body: object) -> httpx.Response:
            given = {"trace_id": "tr-1", "model": "inventory@2", **body}
            return await client.post("/v1/feedback", json=given)

        answer = await say(disliked=True, rating=2)
        assert (answer.status_code, answer.json()["counted"]) == (200, True)
        arm = VariantStats(disliked=Moments(1, 1.0, 1.0), rating=Moments(1, 2.0, 4.0))
        assert judge.judged == [("tr-1", "inventory@2", arm)]
        event = world.audited[0].event
        assert isinstance(event, FeedbackTrace)
        assert (event.about, event.version) == ("tr-1", "inventory@2")
        assert event.outcomes == {"disliked": True, "rating": 2}
        assert not (await say(trace_id="down", resolved=True)).json()["counted"]
        assert not (await say(model="inventory", resolved=True)).json()["counted"]
        assert (await say()).status_code == 400
        assert (await say(rating=6)).status_code == 400
        stranger = await client.post(
            "/v1/feedback",
            json={"trace_id": "tr-1", "model": "inventory@2", "disliked": True},
            headers=_as("hr-rival"),
        )
        assert stranger.status_code == 404
    assert len(judge.judged) == 1
