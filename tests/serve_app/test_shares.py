"""A tenant's share of a gateway is taken before anything is waited for."""

import asyncio

import httpx
import pytest

from serve_app.config import GatewayConfig
from serve_app.gateway.shares import Shares
from tests.serve_app.test_gateway import GOOD, World


def test_a_share_is_bounded_and_given_back() -> None:
    shares = Shares(10)
    first = shares.take("a", 6)
    assert first is not None
    assert shares.take("a", 5) is None
    assert shares.take("b", 256) is not None, "one call may be over it where nothing is under way"
    assert shares.take("b", 1) is None
    first.release(4)
    assert shares.take("a", 8) is not None
    first.release(100)
    first.release()
    assert shares.take("a", 2) is not None
    assert shares.take("a", 1) is None


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_at_the_same_moment_get_past_no_bound(stream: bool) -> None:
    world = World(config=GatewayConfig(max_under_way=16, max_tenant_share=0.5))
    transport = httpx.ASGITransport(app=world.app)
    free = asyncio.Event()

    async def wait() -> None:
        await free.wait()

    world.engine.wait = wait
    body = {**GOOD, "n": 4, "stream": stream, "model": "inventory"}
    keys = [{"Authorization": f"Bearer hr-{who}"} for who in ("user", "rival")]
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:

        def ask(key: dict[str, str]) -> "asyncio.Future[httpx.Response]":
            sent = client.post("/v1/chat/completions", json=body, headers=key)
            return asyncio.ensure_future(sent)

        asked = [ask(keys[0]) for _ in range(6)]
        await asyncio.sleep(0.05)
        other = ask(keys[1])
        await asyncio.sleep(0.05)
        free.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert sorted(statuses) == [200] * 2 + [429] * 4
        assert (await other).status_code != 429
        # All of it was given back.
        assert [(await ask(keys[0])).status_code for _ in range(3)] == [200] * 3


async def test_texts_to_embed_count_as_answers_do() -> None:
    world = World(config=GatewayConfig(max_under_way=16, max_tenant_share=0.5))
    transport = httpx.ASGITransport(app=world.app)
    key = {"Authorization": "Bearer hr-user"}
    body = {"model": "all-minilm-l6-v2", "input": ["boots"] * 6}
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=key) as client:
        asked = [client.post("/v1/embeddings", json=body) for _ in range(3)]
        statuses = sorted(one.status_code for one in await asyncio.gather(*asked))
        assert statuses == [200, 429, 429]
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
