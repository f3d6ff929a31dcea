"""Engines without adapters: who is served by them, and that the others know better."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.config import BaseModelRef
from cluster.errors import SwapError
from cluster.records.adapter import GoldenProbe, ServedAdapter
from serve_app.config import EngineConfig, PlainPool
from serve_app.engine.merged import MergedModel
from serve_app.engine.residents import ResidentAdapters
from serve_app.generation.providers.base import OnItem, ignore
from serve_app.generation.providers.pools import Pools
from serve_app.protocol import (
    AdapterGone,
    AdapterKilled,
    Delta,
    EngineFailed,
    Generation,
    GenerationRequest,
    Sampling,
)
from tests.fakes.targets import target

CARE = ServedAdapter(
    "care",
    2,
    7,
    "/care",
    "d",
    (GoldenProbe(prompt_token_ids=(1,), target_token_ids=(2,), logprobs=(-0.1,)),),
)


class Engine:
    """Implements `AdapterEngine`; `difference` is how far its model is from the trainer."""

    def __init__(self) -> None:
        self.residents = ResidentAdapters()
        self.difference = 0.001
        self.proved = 0

    async def load(self, adapter: ServedAdapter, *, probe: bool) -> float:
        assert probe
        self.proved += 1
        self.residents.add(adapter)
        return self.difference

    async def unload(self, int_id: int) -> bool:
        raise AssertionError("there is nothing to unload")


class Control:
    def __init__(self, *live: ServedAdapter) -> None:
        self.live = list(live)

    async def desired(self) -> list[ServedAdapter]:
        return self.live

    async def desired_version(self, int_id: int) -> ServedAdapter | None:
        return next((one for one in self.live if one.int_id == int_id), None)


async def test_a_merged_model_is_proved_when_its_version_is_live() -> None:
    engine, control = Engine(), Control()
    merged = MergedModel(engine, control, "r1", "care@2")
    await merged.reconcile()
    assert not engine.residents.held
    control.live = [CARE]
    for _ in range(3):
        await merged.reconcile()
    assert (list(engine.residents.held), engine.proved) == ([7], 1)
    control.live = [replace(CARE, version=3, int_id=8)]
    await merged.reconcile()
    assert not engine.residents.held
    control.live = [CARE]
    await merged.reconcile()
    assert engine.proved == 2


async def test_a_merged_model_that_is_not_the_version_does_not_serve() -> None:
    engine = Engine()
    engine.difference = 0.5
    with pytest.raises(SwapError, match="away from its trainer"):
        await MergedModel(engine, Control(CARE), "r1", "care@2").reconcile()
    with pytest.raises(AdapterKilled), engine.residents.using(CARE):
        pass


async def test_a_merged_model_comes_back_when_its_version_is_revived() -> None:
    engine, control = Engine(), Control(CARE)
    merged = MergedModel(engine, control, "r1", "care@2")
    await merged.reconcile()
    engine.residents.kill("care")
    await merged.reconcile()  # switched off and revived since it last looked
    with engine.residents.using(CARE):
        assert engine.proved == 2


async def test_the_base_model_needs_no_proof_and_nothing_is_swapped_into_it() -> None:
    engine = Engine()
    base = MergedModel(engine, Control(CARE), "r1", None)
    await base.reconcile()
    await base.hold(CARE)
    assert engine.proved == 0
    assert await base.remove(7)
    with pytest.raises(SwapError, match="without adapters"):
        await base.prepare(CARE)


class Remote:
    """Stands for `VLLMReplicas`."""

    def __init__(self, name: str, error: Exception | None = None, after: int = 0) -> None:
        self.name, self.error, self.after = name, error, after
        self.reachable = True

    def _generation(self) -> Generation:
        return Generation(self.name, "v", 1, 1, "stop", 0.0, 0.0, None, 1.0, self.name)

    async def complete(self, request: GenerationRequest) -> Generation:
        if self.error is not None:
            raise self.error
        return self._generation()

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        for number in range(3):
            if self.error is not None and number == self.after:
                raise self.error
            yield Delta(self.name)
        yield self._generation()


def _request(adapter: ServedAdapter | None) -> GenerationRequest:
    return GenerationRequest("r", (), Sampling(), target(adapter))


async def _both(pools: Pools, adapter: ServedAdapter | None) -> set[str]:
    whole = await pools.complete(_request(adapter))
    pieces = [item.text async for item in pools.stream(_request(adapter))]
    return {whole.text, *pieces}


def _pools(main: Remote, plain: dict[str, Any]) -> Pools:
    return Pools(main, plain)  # type: ignore[arg-type]


async def test_each_request_goes_to_the_engine_of_its_version() -> None:
    plain = {"base": Remote("base"), "care@2": Remote("merged")}
    pools = _pools(Remote("main"), plain)
    assert await _both(pools, None) == {"base"}
    assert await _both(pools, CARE) == {"merged"}
    assert await _both(pools, replace(CARE, version=3)) == {"main"}
    plain["base"].reachable = False
    assert await _both(pools, None) == {"main"}


@pytest.mark.parametrize(
    "error", [AdapterGone("care@2"), AdapterKilled("care@2"), EngineFailed("it broke")]
)
async def test_what_a_plain_engine_does_not_know_yet_the_others_do(error: Exception) -> None:
    pools = _pools(Remote("main"), {"care@2": Remote("merged", error)})
    assert await _both(pools, CARE) == {"main"}
    broken = _pools(Remote("main"), {"care@2": Remote("merged", error, after=1)})
    with pytest.raises(type(error)):
        [item async for item in broken.stream(_request(CARE))]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": "care@2"}, "name the version and the merged model"),
        ({"model": BaseModelRef(path="x")}, "name the version and the merged model"),
        ({"engine": EngineConfig()}, "no plain one"),
        ({"version": "care", "model": BaseModelRef(path="x")}, "name@number"),
    ],
)
def test_a_plain_pool_that_makes_no_sense_is_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        PlainPool.model_validate(changes)
