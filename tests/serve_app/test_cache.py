"""The response cache: what may share an answer, and what never may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.control.protocol import RoutingTable
from cluster.policy.rules.discount_cap import MaxDiscount
from serve_app.config import CacheConfig
from serve_app.generation.cache import ResponseCache
from serve_app.protocol import Envelope, Generation, Sampling
from tests.serve_app.test_gateway import GOOD, REACHED, V2, World

Change = Callable[[Envelope], object]


def _envelope(text: str = "hi", vector: tuple[float, ...] = (1.0, 0.0)) -> Envelope:
    messages = [{"role": "user", "content": text}]
    envelope = Envelope("tr", 0.0, "acme", {}, "auto", messages, Sampling())
    envelope.embedding = np.array(vector, dtype=np.float32).tobytes()
    return envelope


def _generation(text: str = "ok", reason: str = "stop") -> Generation:
    return Generation(text, "inventory@1", 3, 4, reason, -0.1, -0.2, None, 5.0, "r")


def _cache(**settings: Any) -> ResponseCache:
    return ResponseCache(CacheConfig(**{"mode": "exact", **settings}), "p1")


def _kept(cache: ResponseCache, envelope: Envelope, version: str = "inventory@1") -> None:
    slot = cache.slot(envelope, version)
    assert slot is not None
    cache.put(slot, _generation(), 0.0)


def _hit(cache: ResponseCache, envelope: Envelope, version: str = "inventory@1") -> bool:
    slot = cache.slot(envelope, version)
    return slot is not None and cache.get(slot, 1.0) is not None


def _set(name: str, value: object) -> Change:
    return lambda envelope: setattr(envelope, name, value)


@pytest.mark.parametrize("mode", ["exact", "semantic"])
@pytest.mark.parametrize(
    "change",
    [
        _set("tenant", "other"),
        _set("constraints", (MaxDiscount(20),)),
        _set("chat", False),
        _set("sampling", Sampling(max_tokens=5)),
        _set("sampling", Sampling(json_schema="{}")),
    ],
)
def test_only_the_same_kind_of_request_shares_an_answer(mode: str, change: Change) -> None:
    cache = _cache(mode=mode)
    _kept(cache, _envelope())
    assert _hit(cache, _envelope())
    other = _envelope()
    change(other)
    assert not _hit(cache, other)


@pytest.mark.parametrize("mode", ["exact", "semantic"])
def test_a_swap_or_a_changed_rule_never_meets_an_old_answer(mode: Any) -> None:
    cache = _cache(mode=mode)
    _kept(cache, _envelope())
    assert not _hit(cache, _envelope(), version="inventory@2")
    assert not _hit(ResponseCache(CacheConfig(mode=mode), "p2"), _envelope())


def test_chance_is_not_cached_unless_seeded() -> None:
    envelope = _envelope()
    envelope.sampling = Sampling(temperature=0.7)
    assert _cache().slot(envelope, "v") is None
    envelope.sampling = Sampling(temperature=0.7, seed=3)
    assert _cache().slot(envelope, "v") is not None
    assert ResponseCache(CacheConfig(), "p1").slot(_envelope(), "v") is None


def test_similar_prompts_share_above_the_floor_only() -> None:
    cache = _cache(mode="semantic", min_similarity=0.9)
    _kept(cache, _envelope("opening hours?", (1.0, 0.0)))
    assert _hit(cache, _envelope("when do you open?", (0.95, 0.312)))
    assert not _hit(cache, _envelope("points?", (0.6, 0.8)))
    masked = _envelope("call [PHONE_1]", (1.0, 0.0))
    masked.masked = {"PHONE": 1}
    assert not _hit(cache, masked)
    longer = _envelope("and then?", (1.0, 0.0))
    longer.messages = [*longer.messages, *longer.messages]
    assert not _hit(cache, longer)
    assert not _hit(_cache(), _envelope("when do you open?", (0.95, 0.312)))


def test_entries_are_bounded_in_number_and_time() -> None:
    cache = _cache(max_entries=2, ttl_s=10.0)
    for text in ("a", "b"):
        _kept(cache, _envelope(text))
    assert _hit(cache, _envelope("a"))
    _kept(cache, _envelope("c"))
    assert len(cache) == 2
    assert [_hit(cache, _envelope(text)) for text in ("a", "b", "c")] == [True, False, True]
    slot = cache.slot(_envelope("a"), "inventory@1")
    assert slot is not None
    assert cache.get(slot, 10.5) is None


def test_an_answer_cut_short_is_not_kept() -> None:
    cache = _cache()
    slot = cache.slot(_envelope(), "v")
    assert slot is not None
    cache.put(slot, _generation(reason="length"), 0.0)
    assert len(cache) == 0


async def test_a_hit_walks_every_stage_and_a_swap_misses() -> None:
    world = World(cache_mode="exact")
    headers = {"Authorization": "Bearer hr-user"}
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        seen = []
        for stream in (False, False, True):
            response = await client.post("/v1/chat/completions", json={**GOOD, "stream": stream})
            seen.append(
                (
                    response.headers.get("x-headrace-cache"),
                    world.engine.answer[:9] in response.text.replace("\\", ""),
                )
            )
        assert [cache for cache, _ in seen[:2]] == ["miss", "hit"]
        assert len(world.engine.requests) == 1
        assert [envelope.cache for envelope in world.audited] == ["miss", "hit", "hit"]
        assert all(envelope.verdicts is not None for envelope in world.audited)
        world.engine.residents.add(V2)
        world.table = RoutingTable(2, {"inventory": V2}, REACHED)
        response = await client.post("/v1/chat/completions", json=GOOD)
        assert response.headers["x-headrace-cache"] == "miss"
        assert response.json()["model"] == "inventory@2"
