"""`scripts/bench gateway`: our graph beside the proxies people use, interleaved in one run."""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.processes import pin
from cluster.wheel.narrator import Narrator
from serve_app.bench import systems
from serve_app.bench.systems import System

_CORES = {0, 1}


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 8.0
    concurrency: int = 128
    config: Path = systems.REPOSITORY / "configs/serve/bench.yaml"


@dataclass(frozen=True)
class Measurement:
    """One raw row. Latencies in milliseconds."""

    round: int
    system: str
    kind: str
    """`throughput`, `sequential`, or `cached`: throughput on prompts that repeat."""
    pinned: bool
    rps: float
    p50_ms: float
    p99_ms: float
    answers: int
    errors: dict[str, int]


def run(folder: Path, plan: Plan, narrator: Narrator) -> dict[str, Any]:
    """Start everything, measure in shuffled order, and return rows and medians."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        narrator.step("Start the static upstream and LiteLLM with one and with two workers")
        behind = stack.enter_context(systems.upstream(folder))
        others = [stack.enter_context(systems.litellm(folder, behind, n)) for n in (1, 2)]
        narrator.step("Start a Ray cluster and deploy our graph split, fused and naive")
        placements = ("split", "fused", "naive")
        mine = stack.enter_context(systems.ours(folder / "cluster", plan.config, placements))
        found = [behind, *others, *mine]
        narrator.step("Warm up")
        for system in found:
            for concurrency in (1, plan.concurrency):
                system.measure(
                    concurrency=concurrency, seconds=3, seed=900, core=None, repeated=False
                )
        rows = _measure(found, plan, narrator)
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        "litellm": systems.LITELLM,
        "medians": medians(rows),
        "ratios": ratios(rows),
        "rows": [asdict(row) for row in rows],
    }


def _measure(found: list[System], plan: Plan, narrator: Narrator) -> list[Measurement]:
    rows: list[Measurement] = []
    kinds = ("sequential", "throughput", "cached")
    order = random.Random(0)
    for pinned in (False, True):
        narrator.step("Measure " + ("pinned: system on one core" if pinned else "unpinned"))
        _place(found, pinned=pinned)
        total = plan.rounds * len(kinds) * len(found)
        with narrator.bar("measurements", total) as bar:
            for number in range(plan.rounds):
                shuffled = order.sample(found, len(found))
                for kind in kinds:
                    for system in shuffled:
                        row = _row(system, kind, number, plan, pinned=pinned)
                        rows.append(row)
                        bar.advance()
                        narrator.say(
                            f"{row.system:<16} {kind:<10} {row.rps:7.1f} rps  p50 "
                            f"{row.p50_ms:7.2f}  p99 {row.p99_ms:7.2f} ms  errors {row.errors}"
                        )
    return rows


def _row(system: System, kind: str, number: int, plan: Plan, *, pinned: bool) -> Measurement:
    concurrency = 1 if kind == "sequential" else plan.concurrency
    found = system.measure(
        concurrency=concurrency,
        seconds=plan.seconds,
        seed=number * 2 + pinned,
        core=1 if pinned else None,
        repeated=kind == "cached",
    )
    return Measurement(
        number,
        system.name,
        kind,
        pinned,
        round(found.rps, 2),
        found.quantile(0.5),
        found.quantile(0.99),
        len(found.latencies_ms),
        found.errors,
    )


def _place(found: list[System], *, pinned: bool) -> None:
    """Systems under test on core 0, whatever stands for the model on core 1; or all on both."""
    for system in found:
        own, behind = system.processes()
        is_upstream = system.name == "upstream"
        pin(own, _CORES if not pinned else {1} if is_upstream else {0})
        pin(behind, {1} if pinned else _CORES)


def medians(rows: list[Measurement]) -> list[dict[str, Any]]:
    """One line for each system, kind and placement: medians over the rounds."""
    groups: dict[tuple[str, str, bool], list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.system, row.kind, row.pinned), []).append(row)
    return [
        {
            "system": system,
            "kind": kind,
            "pinned": pinned,
            "rps": statistics.median(row.rps for row in group),
            "p50_ms": statistics.median(row.p50_ms for row in group),
            "p99_ms": statistics.median(row.p99_ms for row in group),
            "errors": sum(sum(row.errors.values()) for row in group),
        }
        for (system, kind, pinned), group in groups.items()
    ]


def ratios(rows: list[Measurement]) -> dict[str, Any]:
    """Ours against LiteLLM at its best of one or two workers, round by round, then the median.

    `added_p50` subtracts the bare upstream's median from LiteLLM's: what the proxy itself adds.
    Ours answers from an engine of no duration, so all of its time is added time.
    """
    found: dict[str, Any] = {}
    table = {(r.round, r.system, r.kind, r.pinned): r for r in rows}
    names = sorted({r.system for r in rows if r.system.startswith("headrace")})
    for pinned in (False, True):
        where = "pinned" if pinned else "unpinned"
        for name in names:
            for kind in ("throughput", "cached", "sequential"):
                values = [
                    _ratio(table, number, name, kind, pinned)
                    for number in sorted({r.round for r in rows})
                ]
                label = "added_p50" if kind == "sequential" else f"{kind}_rps"
                found[f"{name} {label} {where}"] = round(statistics.median(values), 3)
    return found


def _ratio(
    table: dict[tuple[int, str, str, bool], Measurement],
    number: int,
    name: str,
    kind: str,
    pinned: bool,
) -> float:
    mine = table[number, name, kind, pinned]
    theirs = [table[number, f"litellm-{n}", kind, pinned] for n in (1, 2)]
    if kind == "sequential":
        bare = table[number, "upstream", kind, pinned].p50_ms
        return mine.p50_ms / min(row.p50_ms - bare for row in theirs)
    return mine.rps / max(row.rps for row in theirs)
