"""`scripts/bench soak`: the graph under steady load, watched for what grows.

Memory of every process against requests served, and the latency of the last tenth of the run
against the first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.processes import command, descendants, resident_bytes
from cluster.progress import ProgressReporter
from serve_app.bench import systems
from serve_app.bench.systems import System

_SLICE_S = 10.0
#: The first part of a run fills caches and pools; what grows after it is growth.
_WARM_SHARE = 0.2


@dataclass(frozen=True)
class Plan:
    """How long, how hard, and which placement."""

    minutes: float = 30.0
    concurrency: int = 32
    placement: str = "split"
    config: Path = systems.REPOSITORY / "configs/serve/bench.yaml"


@dataclass(frozen=True)
class Slice:
    """One raw row: some seconds of load and the memory after them, in bytes by process id."""

    requests: int
    total: int
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    resident: dict[int, int]


def run(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Deploy, load, watch; returns rows, slopes and latencies."""
    folder.mkdir(parents=True, exist_ok=True)
    progress.step(f"Start a Ray cluster and deploy the graph, {plan.placement}")
    with systems.ours(folder, plan.config, plan.placement) as system:
        names = {pid: command(pid)[:80].strip() for pid in descendants(system.roots)}
        progress.step(f"Load it for {plan.minutes:g} minutes")
        slices = _load(system, plan, progress)
    warm = slices[int(_WARM_SHARE * len(slices)) :]
    tenth = max(1, len(slices) // 10)
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        "requests": slices[-1].total,
        "errors": sum(sum(one.errors.values()) for one in slices),
        "p99_ms": {
            "first_tenth": statistics.median(one.p99_ms for one in slices[:tenth]),
            "last_tenth": statistics.median(one.p99_ms for one in slices[-tenth:]),
        },
        "growth": growth(warm, names),
        "rows": [asdict(one) for one in slices],
    }


def _load(system: System, plan: Plan, progress: ProgressReporter) -> list[Slice]:
    slices: list[Slice] = []
    total, deadline = 0, time.monotonic() + 60 * plan.minutes
    with progress.bar("seconds", 60 * plan.minutes) as bar:
        while time.monotonic() < deadline:
            begun = time.monotonic()
            found = system.measure(
                concurrency=plan.concurrency,
                seconds=_SLICE_S,
                seed=len(slices),
                core=None,
                # Mixed: every third slice asks what was asked before.
                repeated=len(slices) % 3 == 2,
            )
            total += len(found.latencies_ms)
            memory = {pid: resident_bytes(pid) for pid in descendants(system.roots)}
            slices.append(
                Slice(
                    len(found.latencies_ms),
                    total,
                    found.quantile(0.5),
                    found.quantile(0.99),
                    found.errors,
                    memory,
                )
            )
            bar.advance(time.monotonic() - begun)
            bar.describe(f"{found.rps:.0f} rps")
    return slices


def growth(slices: Sequence[Slice], names: dict[int, str]) -> list[dict[str, Any]]:
    """MiB gained for every 10,000 requests, by process, the fastest growing first."""
    found = []
    for pid, name in names.items():
        points = [(one.total, one.resident[pid]) for one in slices if one.resident.get(pid)]
        if len(points) >= 3:
            slope = slope_of(points) * 10_000 / (1 << 20)
            found.append({"process": name, "pid": pid, "mib_per_10k": round(slope, 3)})
    return sorted(found, key=lambda row: -float(row["mib_per_10k"]))


def slope_of(points: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen slope: the median of all pairwise slopes, deaf to a single jump (Sen 1968)."""
    slopes = [
        (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(points)
        for x2, y2 in points[i + 1 :]
        if x2 != x1
    ]
    return statistics.median(slopes) if slopes else 0.0
