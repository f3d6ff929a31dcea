"""Our graph with the real engine beside the engine's own OpenAI server: `scripts/bench engine`.

Same model, same prompts, same settings, streamed; one system after another, in shuffled order.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.progress import ProgressReporter
from cluster.quantiles import percentile
from serve_app.bench import systems
from serve_app.bench.streams import Stream
from serve_app.bench.systems import System

_BARE = "vllm"
_WARM_S = 4.0


@dataclass(frozen=True)
class Plan:
    """How long, how often, and how many streams at a time."""

    rounds: int = 3
    seconds: float = 10.0
    concurrencies: tuple[int, ...] = (1, 8, 32)
    max_tokens: int = 32
    placements: tuple[str, ...] = ("fused", "split")
    config: Path = systems.REPOSITORY / "configs/serve/bench.yaml"


@dataclass(frozen=True)
class Measurement:
    """One raw row; times in milliseconds, `tokens_per_s` over all streams."""

    round: int
    system: str
    concurrency: int
    streams: int
    tokens_per_s: float
    first_p50: float
    first_p99: float
    per_token_p50: float
    """Time of an answer after its first token, by its other tokens: medians over answers."""
    per_token_p99: float
    gap_p50: float
    """Between frames. A frame of ours ends with a word, the engine's with a token."""
    gap_p99: float
    broken: int


def run(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Measure every system in every round; returns rows, medians and ratios."""
    folder.mkdir(parents=True, exist_ok=True)
    order, rows = random.Random(0), list[Measurement]()
    starts: dict[str, Callable[[], AbstractContextManager[System]]] = {
        _BARE: partial(systems.bare_engine, folder),
        **{
            name: partial(systems.ours, folder, plan.config, name, "vllm")
            for name in plan.placements
        },
    }
    for number in range(plan.rounds):
        for name in order.sample(sorted(starts), len(starts)):
            progress.step(f"Round {number + 1} of {plan.rounds}: {name} on the real engine")
            with starts[name]() as system:
                rows += _measure(system, number, plan, progress)
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        "ratios": ratios(rows),
        "rows": [asdict(row) for row in rows],
    }


def _measure(
    system: System, number: int, plan: Plan, progress: ProgressReporter
) -> list[Measurement]:
    rows = []
    for concurrency in plan.concurrencies:
        settings = {"concurrency": concurrency, "max_tokens": plan.max_tokens}
        system.stream(seconds=_WARM_S, seed=900, **settings)
        seconds, streams = system.stream(seconds=plan.seconds, seed=number, **settings)
        row = summed(number, system.name, concurrency, seconds, streams)
        progress.say(
            f"{concurrency:3d} streams  {row.tokens_per_s:7.1f} tokens/s  "
            f"first {row.first_p50:7.2f} ms  "
            f"token {row.per_token_p50:6.2f} p99 {row.per_token_p99:6.2f} ms"
        )
        rows.append(row)
    return rows


def summed(
    number: int, system: str, concurrency: int, seconds: float, streams: list[Stream]
) -> Measurement:
    """One row of what was measured in `seconds`."""
    whole = [stream for stream in streams if stream.whole]
    firsts = [stream.first_ms for stream in whole if stream.first_ms]
    pace = [
        (stream.total_ms - stream.first_ms) / (stream.tokens - 1)
        for stream in whole
        if stream.tokens > 1 and stream.first_ms
    ]
    gaps = [gap for stream in whole for gap in stream.gaps_ms]
    return Measurement(
        number,
        system,
        concurrency,
        len(whole),
        round(sum(stream.tokens for stream in whole) / seconds, 2),
        _rounded(firsts, 0.5),
        _rounded(firsts, 0.99),
        _rounded(pace, 0.5),
        _rounded(pace, 0.99),
        _rounded(gaps, 0.5),
        _rounded(gaps, 0.99),
        len(streams) - len(whole),
    )


def _rounded(values: list[float], share: float) -> float:
    return round(percentile(values, share), 3)


def ratios(rows: list[Measurement]) -> dict[str, float]:
    """Ours against the engine's own server, round by round, then the median of the rounds."""
    table = {(row.round, row.system, row.concurrency): row for row in rows}
    found: dict[str, list[float]] = {}
    for (number, system, concurrency), mine in table.items():
        if system == _BARE:
            continue
        bare = table[number, _BARE, concurrency]
        where = f"{system} at {concurrency}"
        for label, value in (
            ("throughput", mine.tokens_per_s / bare.tokens_per_s),
            ("added first token, ms", mine.first_p50 - bare.first_p50),
            ("time per token p99", mine.per_token_p99 / bare.per_token_p99),
            ("frame gap p99", mine.gap_p99 / bare.gap_p99),
        ):
            found.setdefault(f"{where}: {label}", []).append(value)
    return {label: round(statistics.median(values), 3) for label, values in found.items()}
