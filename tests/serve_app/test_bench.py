"""The benchmark's own arithmetic, and its load generator against a real server."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.processes import resident_bytes
from serve_app.bench.gateway import Measurement, medians, ratios
from serve_app.bench.load import Result, measure, prompts
from serve_app.bench.soak import Slice, growth
from serve_app.bench.systems import free_port


def _row(number: int, system: str, kind: str, rps: float, p50: float, pinned: bool) -> Measurement:
    return Measurement(number, system, kind, pinned, rps, p50, 2 * p50, 10, {})


def test_ratios_take_the_best_of_the_others_round_by_round() -> None:
    rows = []
    for number, pinned in itertools.product((0, 1, 2), (False, True)):
        for kind in ("throughput", "cached", "sequential"):
            rows += [
                _row(number, "upstream", kind, 4000, 1.0, pinned),
                _row(number, "litellm-1", kind, 100, 11.0, pinned),
                _row(number, "litellm-2", kind, 200, 21.0, pinned),
                _row(number, "headrace-fused", kind, 600 + number, 5.0, pinned),
            ]
    found = ratios(rows)
    assert found["headrace-fused throughput_rps unpinned"] == pytest.approx(601 / 200, abs=1e-3)
    assert found["headrace-fused added_p50 pinned"] == pytest.approx(0.5)
    assert len(medians(rows)) == 4 * 3 * 2


def test_quantiles_and_rates() -> None:
    result = Result(2.0, [float(n) for n in range(100)], {"429": 3})
    assert (result.rps, result.quantile(0.5), result.quantile(0.99)) == (50.0, 50.0, 99.0)
    assert Result().quantile(0.5) == Result().rps == 0.0


def test_distinct_prompts_are_distinct_and_repeated_ones_repeat() -> None:
    distinct = list(itertools.islice(prompts(3, distinct=True), 500))
    assert len(set(distinct)) == 500
    assert len(set(itertools.islice(prompts(3, distinct=False), 500))) <= 40
    assert not set(distinct) & set(itertools.islice(prompts(4, distinct=True), 500))


@pytest.fixture
def upstream_url() -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "serve_app.bench.upstream", str(port)])
    yield f"http://127.0.0.1:{port}/v1/chat/completions"
    server.terminate()
    server.wait(10)


async def _measured(url: str) -> Result:
    return await measure(url, "k", "static", concurrency=4, seconds=0.1, seed=1, distinct=True)


async def test_the_load_generator_counts_answers(upstream_url: str) -> None:
    found = Result()
    for _ in range(100):
        found = await _measured(upstream_url)
        if "ConnectionRefusedError" not in found.errors:
            break
    assert found.latencies_ms
    assert not found.errors


async def test_the_load_generator_names_failures() -> None:
    found = await _measured(f"http://127.0.0.1:{free_port()}/")
    assert set(found.errors) == {"ConnectionRefusedError"}
    assert not found.latencies_ms


def test_growth_is_measured_by_process_and_robust_to_one_jump() -> None:
    slices = [
        Slice(100, 1000 * n, 1.0, 2.0, {}, {1: 50 << 20, 2: (10 << 20) + 1000 * n * 200})
        for n in range(1, 30)
    ]
    slices[10].resident[1] += 300 << 20
    found = growth(slices, {1: "steady", 2: "leaking", 3: "gone"})
    assert [row["process"] for row in found] == ["leaking", "steady"]
    assert found[0]["mib_per_10k"] == pytest.approx(200 * 10_000 / (1 << 20), abs=0.01)
    assert found[1]["mib_per_10k"] == 0


def test_a_process_knows_its_own_memory() -> None:
    assert resident_bytes(os.getpid()) > 1 << 20
    assert resident_bytes(2**22 + 1) == 0
