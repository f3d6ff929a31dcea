"""Bounds at the gateway: what is let in, what it costs, and that no way of ending escapes it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cluster.budget.exchange import Desk, Reservation, Settlement
from cluster.budget.ledger import Ledger, LimitExceeded, Room
from cluster.budget.prices import Price, PriceBook
from cluster.records.limits import Limits, Seed
from cluster.records.usage import TokenUsage
from cluster.types import Principal, Role
from serve_app.config import ContextConfig
from serve_app.gateway.budgets import Budgets
from serve_app.gateway.errors import Refused
from serve_app.generation.usage import max_input_tokens
from serve_app.protocol import Envelope, Sampling
from tests.fakes.traces import refusal_of
from tests.serve_app.test_gateway import GOOD, World

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer hr-bounded"}
SCOPE = "tenant:acme"


class Bank:
    """The control plane's side, with a clock of its own; may be down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ledger = Ledger(0.0)
        self.desk = Desk(self.ledger, PriceBook(default=Price(input=1.0, output=1.0)))
        self.settled: list[Settlement] = []
        self.down = False
        self.calls = 0

    def bound(self, **bounds: float | int) -> None:
        self.ledger.open(SCOPE, Limits.model_validate(bounds), 0.0, Seed(), self.now)

    async def spend(
        self, settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | LimitExceeded]:
        self.calls += 1
        await asyncio.sleep(0)
        if self.down:
            raise ConnectionError("down")
        self.settled += settlements
        return self.desk.exchange(settlements, reservations, self.now)

    async def until_settled(self, number: int) -> list[Settlement]:
        for _ in range(400):
            if len(self.settled) >= number:
                break
            await asyncio.sleep(0.005)
        assert len(self.settled) == number
        return self.settled


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def world(bank: Bank) -> World:
    return World(spend=bank.spend)


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def _ask(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post(CHAT, json={**GOOD, **more}, headers=KEY)


async def test_requests_over_the_bound_get_429_and_when_to_come_back(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(rpm=2)
    answers = await asyncio.gather(*(_ask(client) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    let_in = [answer for answer in answers if answer.status_code == 200]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in let_in} == {"2"}
    assert {a.headers["x-ratelimit-remaining-requests"] for a in let_in} == {"0", "1"}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert len(world.engine.requests) == 2
    assert [r.status for r in map(refusal_of, world.audited) if r is not None].count(429) == 4
    bank.now += 61
    assert (await _ask(client)).status_code == 200


async def test_each_choice_is_one_of_the_requests_that_a_limit_counts(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(rpm=5)
    assert (await _ask(client, n=4)).headers["x-ratelimit-remaining-requests"] == "1"
    assert (await _ask(client, n=2)).status_code == 429
    prompts = {"model": "auto", "prompt": ["a", "b"], "n": 8}
    answer = await client.post("/v1/completions", json=prompts, headers=KEY)
    assert answer.status_code == 429
    assert (await _ask(client)).status_code == 200
    assert len(world.engine.requests) == 5


async def test_a_caller_whom_nothing_bounds_never_asks(
    client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(rpm=1)
    headers = {"Authorization": "Bearer hr-user"}
    for _ in range(3):
        assert (await client.post(CHAT, json=GOOD, headers=headers)).status_code == 200
    assert bank.calls == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_used_is_settled_and_on_record(
    world: World, client: httpx.AsyncClient, bank: Bank, stream: bool
) -> None:
    bank.bound(tpm=1000)
    answer = await _ask(client, stream=stream, max_tokens=10, n=2)
    assert answer.status_code == 200
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000 - 20
    [settled] = await bank.until_settled(1)
    assert settled.uses is not None
    # The prompt counts once, with the first of its answers that an engine gave.
    assert sorted((use.target, use.input_tokens, use.output_tokens) for use in settled.uses) == [
        ("inventory@1", 0, 7),
        ("inventory@1", 5, 7),
    ]
    used = sorted((e.usage for e in world.audited if e.usage), key=lambda one: one.input_tokens)
    assert used == [TokenUsage("inventory@1", 0, 7), TokenUsage("inventory@1", 5, 7)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_counts_though_the_first_of_its_answers_is_cached(
    bank: Bank, stream: bool
) -> None:
    world = World(spend=bank.spend, cache_mode="exact")
    bank.bound(tpm=10_000)
    transport = httpx.ASGITransport(app=world.app)
    seeded = {"stream": stream, "max_tokens": 10, "temperature": 0.5, "seed": 4}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await _ask(client, **seeded)).status_code == 200
        assert (await _ask(client, **seeded, n=3)).status_code == 200
    _, settled = await bank.until_settled(2)
    assert sorted((use.input_tokens, use.output_tokens) for use in settled.uses or ()) == [
        (0, 0),
        (0, 7),
        (5, 7),
    ]


async def test_a_prompt_is_reserved_once_for_all_its_answers(
    client: httpx.AsyncClient, bank: Bank
) -> None:
    most = max_input_tokens(GOOD["messages"], Sampling(), 512)  # type: ignore[arg-type]
    bank.bound(tpm=most + 4 * 10)
    assert (await _ask(client, max_tokens=10, n=4)).status_code == 200
    bank.now += 61
    assert (await _ask(client, max_tokens=10, n=5)).status_code == 429


async def test_many_at_once_share_a_bound_of_tokens(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    most = max_input_tokens(GOOD["messages"], Sampling(), 512) + 10  # type: ignore[arg-type]
    bank.bound(tpm=4 * most)
    answers = await asyncio.gather(
        *(_ask(client, max_tokens=10, stream=bool(n % 2)) for n in range(12))
    )
    assert sum(answer.status_code == 200 for answer in answers) >= 4
    used = sum(u.input_tokens + u.output_tokens for u in (e.usage for e in world.audited) if u)
    assert used <= 4 * most


async def test_a_stream_given_up_costs_what_was_written(world: World, bank: Bank) -> None:
    bank.bound(tpm=1000)
    principal = Principal("k9", "acme", frozenset({Role.INFERENCE}), limited=(SCOPE,))
    envelope = Envelope(
        "tr-left",
        0.0,
        "acme",
        {},
        "auto",
        GOOD["messages"],  # type: ignore[arg-type]
        Sampling(max_tokens=10),
    )
    hold = await world.budgets.reserve(principal, None, [envelope])
    walk = world.pipeline.stream(envelope, hold.ended)
    assert await anext(walk) is envelope
    await anext(walk)  # the first piece
    await walk.aclose()
    [settled] = await bank.until_settled(1)
    assert settled.uses is not None
    [use] = settled.uses
    assert use.input_tokens == 5
    assert 1 <= use.output_tokens < len(world.engine.answer)
    [record] = world.audited
    assert record.usage == TokenUsage("inventory@1", use.input_tokens, use.output_tokens)


async def test_a_whole_answer_given_up_costs_its_reservation(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(tpm=1000)
    started, never = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        started.set()
        await never.wait()

    world.engine.wait = hang
    asked = asyncio.ensure_future(_ask(client, max_tokens=10))
    await started.wait()
    asked.cancel()
    [settled] = await bank.until_settled(1)
    assert settled.uses is not None
    [use] = settled.uses
    most = max_input_tokens(GOOD["messages"], Sampling(), 512)  # type: ignore[arg-type]
    assert (use.input_tokens, use.output_tokens) == (most, 10)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails_costs_nothing(
    world: World, client: httpx.AsyncClient, bank: Bank, stream: bool
) -> None:
    bank.bound(tpm=100, max_usd=1.0)

    async def fail() -> None:
        raise RuntimeError("broken")

    world.engine.wait = fail
    await _ask(client, stream=stream, max_tokens=10)
    [settled] = await bank.until_settled(1)
    assert settled.uses == ()
    assert world.audited[0].usage is None


async def test_a_request_that_cannot_fit_is_refused_with_the_reason(
    client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(tpm=50)
    refused = await _ask(client, max_tokens=200)
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers
    assert "lower max_tokens" in refused.json()["error"]["message"]


async def test_a_budget_that_ran_out_is_a_quota(client: httpx.AsyncClient, bank: Bank) -> None:
    bank.bound(max_usd=0.0)
    refused = await _ask(client)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert "retry-after" not in refused.headers


async def test_while_the_ledger_is_away_what_is_bounded_waits(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(rpm=10)
    bank.down = True
    refused = await _ask(client)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "budget_unavailable"
    assert not world.engine.requests
    free = {"Authorization": "Bearer hr-user"}
    assert (await client.post(CHAT, json=GOOD, headers=free)).status_code == 200
    bank.down = False
    answered = await _ask(client)
    assert answered.headers["x-ratelimit-remaining-requests"] == "9"


async def test_embeddings_are_bounded_and_metered(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(tpm=5)
    body = {"model": "all-minilm-l6-v2", "input": ["one two", "three"]}
    answer = await client.post("/v1/embeddings", json=body, headers=KEY)
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == 3
    [settled] = await bank.until_settled(1)
    assert settled.uses is not None
    assert sum(use.input_tokens for use in settled.uses) == 3
    assert {envelope.key_id for envelope in world.audited} == {"k9"}
    assert (await client.post("/v1/embeddings", json=body, headers=KEY)).status_code == 429


async def test_what_is_kept_on_record_counts_as_a_request(
    world: World, client: httpx.AsyncClient, bank: Bank
) -> None:
    bank.bound(rpm=3, max_usd=0.0)

    async def say() -> int:
        body = {"trace_id": "tr-1", "model": "inventory", "resolved": True}
        return (await client.post("/v1/feedback", json=body, headers=KEY)).status_code

    assert [await say() for _ in range(2)] == [200, 200], "it needs no money"
    for _ in range(5):
        assert (await _ask(client, model="nothing")).status_code == 404
    assert await say() == 200, "mistakes of one key are not its tenant's requests"
    assert await say() == 429
    blocked = [one.status for one in map(refusal_of, world.audited) if one is not None]
    assert blocked == [404] * 5 + [429]
    assert all(one.usage is None for one in world.audited), "none of it is billed"


async def test_tokens_a_minute_are_reserved_as_they_are_used_and_money_at_most(bank: Bank) -> None:
    """A limit of tokens far below the window lets requests in that the window could exceed."""
    asked: list[Reservation] = []

    async def spend(
        settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | LimitExceeded]:
        asked.extend(reservations)
        return await bank.spend(settlements, reservations)

    config = ContextConfig(index="", budget_words={"": 100, "care": 0}, default_budget_words=40)
    budgets = Budgets(spend, 4096, config.stitched, "base-model")
    principal = Principal("k1", "acme", frozenset(), limited=(SCOPE,))
    said = [{"role": "user", "content": "hello"}]
    envelope = Envelope("t", 0.0, "acme", {}, "", said, Sampling(max_tokens=16))
    bank.bound(tpm=400)
    for model in ("base-model", "care@1", "stock", None):
        (await budgets.reserve(principal, model, [envelope])).close()
    own = max_input_tokens(said, Sampling(), 4096)
    assert [one.read - own for one in asked] == [1200] * 4
    assert [(one.expected or 0) - own for one in asked] == [150, 0, 60, 150]
    bank.bound(tpm=100)
    with pytest.raises(Refused, match=f"need {own + 150 + 16} .* up to 150 of them context"):
        await budgets.reserve(principal, "base-model", [envelope])


async def test_what_one_key_is_denied_counts_among_its_own_requests(bank: Bank) -> None:
    scopes = ("key:k1", SCOPE)
    for scope in scopes:
        bank.ledger.open(scope, Limits(rpm=2), 0.0, Seed(), 0.0)
    budgets = Budgets(bank.spend, 100)
    principal = Principal("k1", "acme", frozenset(), limited=scopes)
    envelope = Envelope("t", 0.0, "acme", {}, "nothing", [], Sampling())
    for _ in range(2):
        await budgets.count(principal, envelope, key_only=True)
    with pytest.raises(Refused, match="this API key's limit"):
        await budgets.count(principal, envelope, key_only=True)
    other = Principal("k2", "acme", frozenset(), limited=(SCOPE,))
    for _ in range(3):
        await budgets.count(other, envelope, key_only=True)
    for _ in range(2):
        await budgets.count(other, envelope)
    with pytest.raises(Refused, match="your organisation's limit"):
        await budgets.count(other, envelope)


async def test_who_leaves_while_waiting_for_the_ledger_has_reserved_nothing(
    world: World, bank: Bank
) -> None:
    bank.bound(max_usd=1.0)
    principal = Principal("k9", "acme", frozenset({Role.INFERENCE}), limited=(SCOPE,))
    envelope = Envelope("tr", 0.0, "acme", {}, "auto", [], Sampling(max_tokens=10))
    slow = asyncio.Event()
    spend = bank.spend

    async def wait(
        settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | LimitExceeded]:
        await slow.wait()
        return await spend(settlements, reservations)

    world.budgets._spend = wait
    first = asyncio.ensure_future(world.budgets.reserve(principal, None, [envelope]))
    await asyncio.sleep(0.01)
    gone = [
        asyncio.ensure_future(world.budgets.reserve(principal, None, [envelope])) for _ in range(5)
    ]
    await asyncio.sleep(0.01)
    for one in gone:
        one.cancel()
    await asyncio.sleep(0.01)
    slow.set()
    (await first).close()
    await bank.until_settled(1)
    assert bank.ledger._held == {}


def test_the_most_that_is_read_counts_all_that_gets_into_the_prompt() -> None:
    plain = [{"role": "user", "content": "hi"}]
    least = max_input_tokens(plain, Sampling(), 10**6)
    tools = Sampling(tools="x" * 5000)
    assert max_input_tokens(plain, tools, 10**6) >= least + 5000
    called = [{**plain[0], "tool_calls": [{"function": {"arguments": "y" * 3000}}]}]
    assert max_input_tokens(called, Sampling(), 10**6) >= least + 3000
    # NFC makes two letters of one here, and a space goes into every chat marker.
    grows = [{"role": "user", "content": chr(0x958) * 100 + "<|x|>" * 100}]
    assert max_input_tokens(grows, Sampling(), 10**6) >= 100 * (6 + 6)
    assert max_input_tokens(called, tools, 64) == 64
