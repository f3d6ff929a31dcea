"""Who reaches which adapter, what a stranger is told, and what is on record of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from cluster.control.protocol import RoutingTable
from cluster.records.trace import Refusal, RefusalTrace
from cluster.types import EVERYONE, Principal, Role
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.errors import Refused
from serve_app.gateway.refusal_log import RefusalLog
from serve_app.protocol import AdapterKilled, Envelope
from tests.fakes.traces import refusal_of
from tests.serve_app.test_gateway import GOOD, REACHED, V1, World

CHAT = "/v1/chat/completions"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def _as(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["hr-rival", "hr-narrow"])
@pytest.mark.parametrize(
    "model",
    [
        "inventory",
        "inventory@1",
        "inventory@2",
        "../inventory",
        "inventory/../inventory",
        "Inventory",
        "inventory\x00",
        "inventory ",
        "acme/inventory",
        "nobody",
        "@1",
        "inventory@1@1",
        "x" * 300,
    ],
)
async def test_a_model_out_of_reach_is_one_that_does_not_exist(
    world: World, client: httpx.AsyncClient, key: str, model: str
) -> None:
    response = await client.post(CHAT, json={**GOOD, "model": model}, headers=_as(key))
    error = response.json()["error"]
    [recorded] = world.audited
    assert recorded.key_id == {"hr-rival": "k3"}.get(key, "k4")
    assert response.headers["x-headrace-trace-id"] == recorded.trace_id
    if len(model) > 128:
        assert (response.status_code, error["param"]) == (400, "model")
    else:
        assert (response.status_code, error["code"]) == (404, "model_not_found")
        assert "inventory" not in error["message"].replace(repr(model[:64]), "")
        assert isinstance(recorded.event, RefusalTrace)
        assert recorded.event.requested_model == model[:256]
    assert not world.engine.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_the_router_never_takes_a_tenant_to_anothers_adapter(
    world: World, client: httpx.AsyncClient, stream: bool
) -> None:
    body = {**GOOD, "stream": stream}
    assert (await client.post(CHAT, json=body, headers=_as("hr-rival"))).status_code == 200
    [request] = world.engine.requests
    assert request.adapter is None
    [recorded] = world.audited
    # Not even by name: what others have does not exist.
    assert recorded.warnings == []
    assert recorded.route is not None
    assert (recorded.route.adapter, recorded.route.intent) == (None, "")


async def test_no_header_makes_one_tenant_another(world: World, client: httpx.AsyncClient) -> None:
    tricks = {
        "x-tenant": "acme",
        "x-headrace-tenant": "acme",
        "x-forwarded-user": "acme",
        "x-api-key": "hr-user",
        "openai-organization": "acme",
        "cookie": "key=hr-user",
    }
    headers = {**tricks, **_as("hr-rival")}
    body = {**GOOD, "model": "inventory", "user": "acme", "metadata": {"tenant": "acme"}}
    response = await client.post(CHAT, json=body, headers=headers)
    assert response.status_code == 404
    assert world.audited[0].tenant == "rival"


async def test_models_lists_what_is_within_reach(world: World, client: httpx.AsyncClient) -> None:
    seen = {}
    for key in ("hr-user", "hr-rival", "hr-narrow"):
        listed = (await client.get("/v1/models", headers=_as(key))).json()["data"]
        seen[key] = "inventory" in {entry["id"] for entry in listed}
    assert seen == {"hr-user": True, "hr-rival": False, "hr-narrow": False}


@pytest.mark.parametrize("tenants", [{"acme", "rival"}, {"acme", EVERYONE}])
async def test_a_grant_opens_an_adapter(
    world: World, client: httpx.AsyncClient, tenants: set[str]
) -> None:
    world.table = replace(world.table, access={"inventory": frozenset(tenants)})
    body = {**GOOD, "model": "inventory"}
    response = await client.post(CHAT, json=body, headers=_as("hr-rival"))
    assert response.headers["x-headrace-model"] == "inventory@1"
    # A key's own limit holds whatever its tenant is granted.
    narrow = await client.post(CHAT, json=body, headers=_as("hr-narrow"))
    assert narrow.status_code == 404


async def test_a_killed_adapter_says_so_to_those_who_reach_it(
    world: World, client: httpx.AsyncClient
) -> None:
    world.table = RoutingTable(2, {}, REACHED, frozenset({"inventory"}))
    body = {**GOOD, "model": "inventory"}
    mine = await client.post(CHAT, json=body, headers=_as("hr-user"))
    assert (mine.status_code, mine.json()["error"]["code"]) == (503, "adapter_killed")
    assert (await client.post(CHAT, json=body, headers=_as("hr-rival"))).status_code == 404
    routed = await client.post(CHAT, json=GOOD, headers=_as("hr-user"))
    assert routed.headers["x-headrace-model"] == "base"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_under_way_is_cut_off_by_a_kill(
    world: World, client: httpx.AsyncClient, stream: bool
) -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        entered.set()
        await asyncio.sleep(30)

    world.engine.wait = wait
    body = {**GOOD, "model": "inventory", "stream": stream}
    asked = asyncio.create_task(client.post(CHAT, json=body, headers=_as("hr-user")))
    await asyncio.wait_for(entered.wait(), 5)
    assert world.engine.residents.kill("inventory") == 1
    response = await asyncio.wait_for(asked, 5)
    assert "adapter_killed" in response.text
    assert response.status_code == (200 if stream else 503)
    refusal = refusal_of(world.audited[0])
    assert refusal is not None
    assert refusal.code == "adapter_killed"
    with pytest.raises(AdapterKilled), world.engine.residents.using(V1):
        pass


async def test_strangers_cannot_fill_the_log() -> None:
    recorded: list[Envelope] = []

    async def record(envelope: Envelope) -> None:
        recorded.append(envelope)

    async def count(principal: Principal, _envelope: Envelope) -> None:
        left[principal.key_id] = left.get(principal.key_id, 1000) - 1
        if principal.key_id == "unknown":
            raise Refused(Refusal(503, "budget_unavailable", "who knows"))
        if left[principal.key_id] < 0:
            raise Refused(Refusal(429, "rate_limit_exceeded", "no more"))

    now, left = [100.0], {"poor": 3}
    denials = RefusalLog(record, count, lambda: now[0])
    unknown = Refused(Refusal(401, "invalid_api_key", "no"))
    known = Refused(
        Refusal(404, "model_not_found", "no"),
        principal=Principal("k", "acme", frozenset()),
        model="secret",
    )
    for _ in range(1000):
        await denials(unknown, "/v1/chat/completions")
    strangers = len(recorded)
    for _ in range(100):
        await denials(known, "/x")
    assert strangers < 50
    assert len(recorded) == strangers + 100
    now[0] += 1
    await denials(unknown, "/y")
    event = recorded[-1].event
    assert isinstance(event, RefusalTrace)
    assert (event.path, event.unrecorded_before) == ("/y", 1000 - strangers)
    assert await denials(Refused(Refusal(400, "invalid_value", "no")), "/z") is None
    now[0] += 1
    before = len(recorded)
    for status in (400, 409, 413) * 100:
        improper = Refused(Refusal(status, "x", "no"), principal=known.principal)
        await denials(improper, "/v1/labels")
    assert before < len(recorded) < before + 50
    assert recorded[-1].tenant == "acme"
    # Of a key with limits, as many as it may make requests, and then up to a rate, as where nobody
    # knows what it has left; the others are counted.
    for who in ("poor", "unknown"):
        principal, before = Principal(who, who, frozenset()), len(recorded)
        for _ in range(100):
            denied = Refused(Refusal(403, "access_denied", "no"), principal=principal)
            await denials(denied, "/key/list")
        found = len(recorded) - before
        assert 20 <= found < 50
        now[0] += 1
        await denials(denied, "/key/list")
        event = recorded[-1].event
        assert isinstance(event, RefusalTrace)
        assert event.unrecorded_before == 100 - found
    # Nor does one tenant keep another's out of it.
    other = Principal("r", "rival", frozenset())
    await denials(Refused(Refusal(409, "x", "no"), principal=other), "/v1/rollouts")
    event = recorded[-1].event
    assert isinstance(event, RefusalTrace)
    assert (event.tenant, event.path, event.unrecorded_before) == ("rival", "/v1/rollouts", 0)


async def test_what_is_remembered_of_a_key_ends_with_it() -> None:
    known = Principal("k", "acme", frozenset({Role.INFERENCE}), expires_at=50.0)
    now, ended, asked = [0.0], [0], 0

    async def resolve(_digest: str) -> Principal | None:
        nonlocal asked
        asked += 1
        return known if ended[0] == 0 else None

    authenticate = Authenticator(resolve, 1000.0, lambda: ended[0], lambda: now[0])
    for _ in range(3):
        await authenticate("Bearer hr-a", Role.INFERENCE)
    assert asked == 1
    now[0] = 50.0
    with pytest.raises(Refused, match="expired"):
        await authenticate("Bearer hr-a", Role.INFERENCE)
    now[0], ended[0] = 49.0, 1
    with pytest.raises(Refused, match="revoked"):
        await authenticate("Bearer hr-a", Role.INFERENCE)
    assert asked == 2
