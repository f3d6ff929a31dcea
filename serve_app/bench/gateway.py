"""`scripts/bench gateway`: our graph beside the proxies people use, interleaved in one run."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.processes import pin
from cluster.progress import ProgressReporter
from serve_app.bench import systems
from serve_app.bench.systems import System

_CORES = {0, 1}
_WARM_S = 3.0
Start = Callable[[], AbstractContextManager[System]]


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


def run(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """In each round start one system after another in shuffled order, alone on the machine.

    What is not measured does not run, so that no idle process costs the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order, rows = random.Random(0), list[Measurement]()
    with systems.upstream(folder) as behind:
        starts = _starts(folder, plan, behind)
        for number in range(plan.rounds):
            for name in order.sample(sorted(starts), len(starts)):
                progress.step(f"Round {number + 1} of {plan.rounds}: {name}")
                with starts[name]() as system:
                    rows += _measure(system, behind, number, plan, progress)
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        "litellm": systems.LITELLM,
        "medians": medians(rows),
        "ratios": ratios(rows),
        "rows": [asdict(row) for row in rows],
    }


def _starts(folder: Path, plan: Plan, behind: System) -> dict[str, Start]:
    """How to start each system; the upstream stands for the proxies' model and is on."""
    return {
        "upstream": lambda: nullcontext(behind),
        "litellm-1": lambda: systems.litellm(folder, behind, 1),
        "litellm-2": lambda: systems.litellm(folder, behind, 2),
        **{
            f"headrace-{name}": partial(systems.ours, folder, plan.config, name)
            for name in systems.PLACEMENTS
        },
    }


def _measure(
    system: System, upstream: System, number: int, plan: Plan, progress: ProgressReporter
) -> Iterator[Measurement]:
    for concurrency in (1, plan.concurrency):
        system.measure(
            concurrency=concurrency, seconds=_WARM_S, seed=900, core=None, repeated=False
        )
    for pinned in (False, True):
        _place(system, upstream, pinned=pinned)
        for kind in ("sequential", "throughput", "cached"):
            row = _row(system, kind, number, plan, pinned=pinned)
            progress.say(
                f"{'one core' if pinned else 'unpinned'}  {kind:<10} {row.rps:7.1f} rps  p50 "
                f"{row.p50_ms:7.2f}  p99 {row.p99_ms:7.2f} ms  errors {row.errors}"
            )
            yield row


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


def _place(system: System, upstream: System, *, pinned: bool) -> None:
    """The system under test on core 0, whatever stands for the model on core 1; or all on both."""
    own, behind = system.processes()
    pin(own, {0} if pinned else _CORES)
    pin([*behind, *upstream.processes()[0]], {1} if pinned else _CORES)


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
    Ours answers from an engine of no duration, so all of its time is added time. `sequential_p99`
    is of whole requests.
    """
    found: dict[str, Any] = {}
    table = {(r.round, r.system, r.kind, r.pinned): r for r in rows}
    names = sorted({r.system for r in rows if r.system.startswith("headrace")})
    rounds = sorted({r.round for r in rows})
    for pinned in (False, True):
        where = "pinned" if pinned else "unpinned"
        for name in names:
            for kind in ("throughput", "cached", "sequential"):
                values = [_ratio(table, number, name, kind, pinned) for number in rounds]
                label = "added_p50" if kind == "sequential" else f"{kind}_rps"
                found[f"{name} {label} {where}"] = round(statistics.median(values), 3)
            tails = [_tail(table, number, name, pinned) for number in rounds]
            found[f"{name} sequential_p99 {where}"] = round(statistics.median(tails), 3)
    return found


Table = dict[tuple[int, str, str, bool], Measurement]


def _tail(table: Table, number: int, name: str, pinned: bool) -> float:
    theirs = [table[number, f"litellm-{n}", "sequential", pinned].p99_ms for n in (1, 2)]
    return table[number, name, "sequential", pinned].p99_ms / min(theirs)


def _ratio(
    table: Table,
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
