"""The gateway's HTTP surface over real stages' order, a fake engine and no Ray."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import pytest

from cluster.budget.ledger import LimitExceeded, Room
from cluster.control.protocol import RoutingTable
from cluster.policy.rules import PolicyConfig
from cluster.records.adapter import ServedAdapter
from cluster.records.labels import GivenLabel, LabelTask
from cluster.records.trace import Route
from cluster.types import Principal, Role
from serve_app.config import (
    CacheConfig,
    GatewayConfig,
    GovernanceConfig,
    MonitoringConfig,
    StageConfig,
)
from serve_app.gateway.app import create_app
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.budgets import Budgets, Spend
from serve_app.generation.attempts import Attempts
from serve_app.generation.cache import ResponseCache
from serve_app.pipeline.batcher import StageBatcher, StageCall
from serve_app.pipeline.pipeline import Pipeline, StepRunner
from serve_app.pipeline.steps import STEPS, Row, Step, run
from serve_app.protocol import Envelope, Stage
from serve_app.stages.data_prep import DataPrep
from serve_app.stages.governance import Governance
from serve_app.stages.monitoring import Monitoring
from serve_app.stages.policy import Policy
from tests.fakes.engine import FakeEngine
from tests.fakes.targets import targets
from tests.fakes.traces import refusal_of

V1 = ServedAdapter("inventory", 1, 1, "/a/1", "d1")
V2 = ServedAdapter("inventory", 2, 2, "/a/2", "d2")
REACHED = {"inventory": frozenset({"acme"})}
GOOD = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


async def _nothing_bounded(*_: object) -> list[Room | LimitExceeded]:
    raise AssertionError("a caller whom nothing bounds asks nobody")


class World:
    """A gateway and what is behind it."""

    def __init__(
        self,
        cache_mode: Literal["off", "exact", "semantic"] = "off",
        spend: Spend = _nothing_bounded,
        rollouts: Any = None,
        *,
        answer_values: Literal["show", "mask"] = "show",
        config: GatewayConfig | None = None,
        most_characters: int | None = None,
    ) -> None:
        self.ended: set[str] = set()
        self._governance = GovernanceConfig(answer_values=answer_values)
        self.engine = FakeEngine()
        self.engine.residents.add(V1)
        self.table = RoutingTable(1, {"inventory": V1}, REACHED)
        self.audited: list[Envelope] = []
        cache = ResponseCache(CacheConfig(mode=cache_mode), "p1")
        self.attempts = Attempts(self.engine, lambda: self.table, cache, targets())
        self.pipeline = Pipeline(self._hops(), self.attempts, masks_answers=answer_values == "mask")
        self.budgets = Budgets(spend, 512)
        self.control: Any = SimpleNamespace(labels=self, rollouts=rollouts)
        self.app = create_app(
            pipeline=self.pipeline,
            authenticate=Authenticator(self._resolve, 5.0, lambda: len(self.ended)),
            table=lambda: self.table,
            base_model="mini",
            config=config or GatewayConfig(max_body_bytes=20_000),
            count_tokens=lambda texts: sum(len(text.split()) for text in texts),
            budgets=self.budgets,
            control=self.control,
            most_characters=most_characters,
        )

    async def _resolve(self, digest: str) -> Principal | None:
        from cluster.records.keys import digest as of

        keys = {
            of("hr-user"): Principal("k1", "acme", frozenset({Role.INFERENCE})),
            of("hr-expert"): Principal("k2", "acme", frozenset({Role.LABEL})),
            of("hr-narrow-expert"): Principal(
                "k5", "acme", frozenset({Role.LABEL}), models=frozenset({"inventory"})
            ),
            of("hr-rival"): Principal("k3", "rival", frozenset({Role.INFERENCE})),
            of("hr-bounded"): Principal(
                "k9", "acme", frozenset({Role.INFERENCE}), limited=("tenant:acme",)
            ),
            of("hr-narrow"): Principal(
                "k4", "acme", frozenset({Role.INFERENCE}), models=frozenset({"other"})
            ),
        }
        return None if digest in self.ended else keys.get(digest)

    def _hops(self) -> dict[str, StepRunner]:
        async def route(batch: list[Envelope]) -> list[Envelope]:
            for envelope in batch:
                envelope.route = Route("inventory", "x", 1.0, 0.0, "test")
                text = envelope.messages[-1]["content"]
                envelope.embedding = struct.pack("<2f", float(len(text)), 0.5)
            return batch

        async def stitch(batch: list[Envelope]) -> list[Envelope]:
            for envelope in batch:
                envelope.prompt = envelope.messages
            return batch

        async def audit(batch: list[Envelope]) -> list[Envelope]:
            self.audited.extend(batch)
            return batch

        stages: dict[str, Stage] = {
            "data_prep": DataPrep(),
            "governance": Governance(self._governance),
            "routing": route,
            "policy": Policy(PolicyConfig()),
            "context": stitch,
            "monitoring": Monitoring(MonitoringConfig()),
            "audit": audit,
        }
        return {
            step.name: StageBatcher(step, _call(stages[step.stage]), StageConfig())
            for step in STEPS.values()
        }

    async def claim(
        self, tenant: str, annotator: str, limit: int, adapters: Sequence[str] = ()
    ) -> list[LabelTask]:
        self.claimed_of = list(adapters)
        return []

    async def submit(self, tenant: str, given: list[GivenLabel]) -> int:
        return len(given)

    async def counts(self, tenant: str) -> dict[str, int]:
        return {"queued": 0}


def _call(stage: Stage) -> StageCall:
    async def call(step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
        return await run(stage, step, rows, deadlines)

    return call


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=world.app)
    headers = {"Authorization": "Bearer hr-user"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as found:
        yield found


async def test_an_answer_names_the_version_and_is_audited(
    world: World, client: httpx.AsyncClient
) -> None:
    response = await client.post("/v1/chat/completions", json=GOOD)
    body = response.json()
    assert response.status_code == 200
    assert body["model"] == "inventory@1"
    assert body["choices"][0]["message"]["content"] == world.engine.answer
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert response.headers["x-headrace-trace-id"] == body["id"] == world.audited[0].trace_id
    assert world.audited[0].tenant == "acme"


async def test_the_users_own_values_are_restored_for_that_user_only(
    world: World, client: httpx.AsyncClient
) -> None:
    world.engine.answer = '{"intent": "info", "slots": {"phone": ["[PHONE_1]"]}}'
    body = {"model": "inventory", "messages": [{"role": "user", "content": "415-555-0132"}]}
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", json={**body, "stream": stream})
        assert "415-555-0132" in response.text
    assert world.engine.prompts[0][0]["content"] == "[PHONE_1]"
    assert all("555-01" not in str(envelope) for envelope in world.audited)


async def test_a_stream_is_openai_shaped(client: httpx.AsyncClient, world: World) -> None:
    body = {**GOOD, "stream": True, "stream_options": {"include_usage": True}}
    response = await client.post("/v1/chat/completions", json=body)
    events = [line[6:] for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    content = [c["delta"].get("content", "") for k in chunks for c in k["choices"]]
    assert "".join(content) == world.engine.answer
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["model"] for chunk in chunks} == {"inventory@1"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["usage"]["total_tokens"] == 12
    assert len(world.audited) == 1


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        (lambda b: {**b, "model": "nope"}, 404, "model_not_found", "model"),
        (lambda b: {**b, "model": "inventory@9"}, 404, "model_not_found", "model"),
        (lambda b: {**b, "model": "../etc"}, 404, "model_not_found", "model"),
        (lambda b: {**b, "messages": []}, 400, "invalid_value", "messages"),
        (lambda b: {**b, "max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        (lambda b: {**b, "temperature": 9}, 400, "invalid_value", "temperature"),
        (lambda b: {**b, "surprise": 1}, 400, "unsupported_parameter", "surprise"),
        (lambda b: {**b, "n": 9}, 400, "invalid_value", "n"),
        (
            lambda b: {**b, "messages": [{"role": "user", "content": " "}]},
            400,
            "empty_messages",
            "messages",
        ),
        (
            lambda b: {**b, "messages": [{"role": "user", "content": "x" * 900}]},
            400,
            "context_length_exceeded",
            "messages",
        ),
        (
            lambda b: {**b, "messages": [{"role": "user", "content": "x" * 90_000}]},
            413,
            "body_too_large",
            None,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_input_is_refused_in_openais_words(
    client: httpx.AsyncClient,
    change: Change,
    status: int,
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    body = change({**GOOD, "stream": stream})
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code == 200:
        # The prompt's length is known once the engine has seen it, after a stream has begun.
        assert stream
        error = json.loads(response.text.split("\n\n")[-3][6:])["error"]
    else:
        assert response.status_code == status
        error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert (await client.post("/v1/chat/completions", json=GOOD)).status_code == 200


async def test_malformed_json_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", content=b'{"model": ')
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Basic abc", 401),
        ("Bearer hr-unknown", 401),
        ("Bearer " + "hr-" + "x" * 500, 401),
        ("Bearer hr-expert", 403),
    ],
)
async def test_without_the_right_key_nothing_is_served(
    world: World, header: str | None, status: int
) -> None:
    transport = httpx.ASGITransport(app=world.app)
    headers = {"Authorization": header} if header else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/chat/completions", json=GOOD, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] in ("authentication_error", "permission_error")
    assert not world.engine.requests
    [recorded] = world.audited
    refusal = refusal_of(recorded)
    assert refusal is not None
    assert refusal.status == status
    assert recorded.key_id == ("k2" if status == 403 else "")


async def test_a_refused_request_is_audited(world: World, client: httpx.AsyncClient) -> None:
    body = {**GOOD, "messages": [{"role": "user", "content": "x" * 900}]}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
    assert [e.refusal.code for e in world.audited if e.refusal] == ["context_length_exceeded"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_caught_in_a_swap_is_answered_by_the_new_version(
    world: World, client: httpx.AsyncClient, stream: bool
) -> None:
    await world.engine.residents.drain(V1.int_id, 1.0)
    world.engine.residents.add(V2)
    # The replicas hear of a swap before this gateway does.
    later = RoutingTable(2, {"inventory": V2}, REACHED)
    asyncio.get_running_loop().call_later(0.05, setattr, world, "table", later)
    response = await client.post("/v1/chat/completions", json={**GOOD, "stream": stream})
    assert response.status_code == 200
    assert "inventory@2" in response.text
    # It waited for the news, and did not ask again and again meanwhile.
    asked = [request.adapter for request in world.engine.requests]
    assert asked == [V1, V2]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_version_that_nothing_replaces_is_waited_for_once(
    world: World, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("serve_app.generation.attempts._WAIT_BUDGET_S", 0.05)
    slept, sleep = list[float](), asyncio.sleep

    async def counted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr("serve_app.generation.attempts.asyncio.sleep", counted)
    await world.engine.residents.drain(V1.int_id, 1.0)
    response = await client.post("/v1/chat/completions", json={**GOOD, "stream": stream})
    assert "adapter_unavailable" in response.text
    # Eight tries, and one time of waiting between all of them.
    assert len(world.engine.requests) == 8
    assert 0 < sum(s for s in slept if s) <= 0.05 + 0.01


async def test_models_are_listed_with_parent_and_root(client: httpx.AsyncClient) -> None:
    data = (await client.get("/v1/models")).json()["data"]
    assert [(m["id"], m["parent"], m["root"]) for m in data] == [
        ("auto", None, "auto"),
        ("mini", None, "mini"),
        ("all-minilm-l6-v2", None, "all-minilm-l6-v2"),
        ("inventory", "mini", "inventory@1"),
    ]


async def test_a_key_labels_the_adapters_it_is_limited_to(
    world: World, client: httpx.AsyncClient
) -> None:
    headers = {"Authorization": "Bearer hr-narrow-expert"}
    await client.post("/v1/labels/claim", json={"annotator": "ann"}, headers=headers)
    assert world.claimed_of == ["inventory"]
    label = {"trace_id": "tr-1", "answer": "x", "annotator": "ann"}
    for adapter, status in (("inventory", 200), ("loyalty", 403)):
        body = {"labels": [{**label, "adapter": adapter}]}
        answer = await client.post("/v1/labels", json=body, headers=headers)
        assert answer.status_code == status, answer.text


async def test_labels_need_their_own_role(world: World, client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/labels")).status_code == 403
    headers = {"Authorization": "Bearer hr-expert"}
    assert (await client.get("/v1/labels", headers=headers)).json() == {"counts": {"queued": 0}}
    bad = await client.post("/v1/labels/claim", json={"annotator": ""}, headers=headers)
    assert bad.status_code == 400
    climbing = {"trace_id": "t", "adapter": "../../etc", "answer": "x", "annotator": "ann"}
    bad = await client.post("/v1/labels", json={"labels": [climbing]}, headers=headers)
    assert bad.status_code == 400
    assert "adapter" in bad.json()["error"]["message"]
    refusal = refusal_of(world.audited[-1])
    assert refusal is not None
    assert refusal.param == "labels.0.adapter"


async def test_over_the_bound_requests_are_refused_before_any_work(world: World) -> None:
    app = create_app(
        pipeline=world.pipeline,
        authenticate=Authenticator(world._resolve, 5.0),
        table=lambda: world.table,
        base_model="mini",
        config=GatewayConfig(max_under_way=2, max_tenant_share=1.0),
        count_tokens=len,
        budgets=world.budgets,
        control=world.control,
    )
    release = asyncio.Event()
    world.engine.wait = release.wait
    headers = {"Authorization": "Bearer hr-user"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        url = "/v1/chat/completions"
        busy = [asyncio.create_task(client.post(url, json=GOOD)) for _ in range(2)]
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if len(world.engine.prompts) == 2:
                break
        refused = await client.post(url, json=GOOD)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        release.set()
        assert [response.status_code for response in await asyncio.gather(*busy)] == [200, 200]
        assert (await client.post(url, json=GOOD)).status_code == 200
    assert len(world.audited) == 3


async def test_a_stream_ends_with_its_key(world: World, client: httpx.AsyncClient) -> None:
    from cluster.records.keys import digest

    world.engine.answer = "one two three four"
    pieces = list[str]()

    async def revoke() -> None:
        world.ended.add(digest("hr-user"))

    world.engine.wait = revoke
    body = {**GOOD, "model": "inventory", "stream": True}
    headers = {"Authorization": "Bearer hr-user"}
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        pieces = [line async for line in answer.aiter_lines() if line]
    assert "this API key has ended" in pieces[-1]
    assert "four" not in "".join(pieces)
    assert (
        await client.post("/v1/chat/completions", json=GOOD, headers=headers)
    ).status_code == 401


async def test_a_stream_goes_on_when_another_key_ends(
    world: World, client: httpx.AsyncClient
) -> None:
    async def revoke() -> None:
        world.ended.add("another")

    world.engine.wait = revoke
    body = {**GOOD, "stream": True}
    headers = {"Authorization": "Bearer hr-user"}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_one_tenant_leaves_room_for_the_others() -> None:
    world = World(config=GatewayConfig(max_under_way=8, max_tenant_share=0.5))
    release = asyncio.Event()
    world.engine.wait = release.wait
    rival, acme = ({"Authorization": f"Bearer hr-{name}"} for name in ("rival", "user"))
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        url = "/v1/chat/completions"
        wide = {**GOOD, "model": "inventory", "n": 4}
        busy = [asyncio.create_task(client.post(url, json=wide, headers=acme))]
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if len(world.engine.prompts) == 4:
                break
        refused = await client.post(url, json=GOOD, headers=acme)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
        busy.append(asyncio.create_task(client.post(url, json=GOOD, headers=rival)))
        await asyncio.sleep(0.05)
        release.set()
        assert [response.status_code for response in await asyncio.gather(*busy)] == [200, 200]
        assert (await client.post(url, json=GOOD, headers=acme)).status_code == 200


async def test_a_fault_of_ours_has_openais_shape_and_no_detail(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(envelope: Envelope) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(world.pipeline, "answer", broken)
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    headers = {"Authorization": "Bearer hr-user"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        response = await client.post("/v1/chat/completions", json=GOOD)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
