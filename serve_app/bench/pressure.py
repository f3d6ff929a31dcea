"""What the graph does when far more is asked of it than it can give.

`scripts/bench overload`: ten times the clients it can serve; `scripts/bench streams`: hundreds of
streams at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.progress import ProgressReporter
from serve_app.bench import systems
from serve_app.bench.fixed import ANSWER, TOKENS
from serve_app.bench.load import Result
from serve_app.bench.streams import Stream

_TIMES = 10
_AFTER_S = 8.0


@dataclass(frozen=True)
class Plan:
    """Which placement, how long, and how many clients make its peak or how many streams."""

    placement: str = "fused"
    seconds: float = 60.0
    concurrency: int = 128
    config: Path = systems.REPOSITORY / "configs/serve/bench.yaml"


def overload(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Peak, overload and recovery, on distinct prompts; clients wait as long as a 429 says."""
    folder.mkdir(parents=True, exist_ok=True)
    progress.step(f"Start a Ray cluster and deploy the graph, {plan.placement}")
    # Each gateway admits what makes the peak; the kernel deals connections out unevenly.
    settings = (f"gateway.max_under_way={plan.concurrency}",)
    with systems.ours(folder, plan.config, plan.placement, settings=settings) as system:
        system.measure(concurrency=plan.concurrency, seconds=5, seed=900)
        progress.step(f"Peak: {plan.concurrency} clients")
        peak = system.measure(concurrency=plan.concurrency, seconds=10, seed=1)
        progress.say(f"{peak.rps:.0f} answers a second")
        clients = _TIMES * plan.concurrency
        progress.step(f"Overload: {clients} clients for {plan.seconds:g} seconds")
        during = system.measure(concurrency=clients, seconds=plan.seconds, seed=2, patient=True)
        progress.say(f"{during.rps:.0f} answers a second; refused or failed: {during.errors}")
        progress.step("After")
        after = system.measure(concurrency=plan.concurrency, seconds=_AFTER_S, seed=3)
    rows = {"peak": peak, "during": during, "after": after}
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        **pressed(peak, during, after),
        "rows": {name: _row(result) for name, result in rows.items()},
    }


def pressed(peak: Result, during: Result, after: Result) -> dict[str, Any]:
    """The figures of an overload: shares of the peak, other errors than 429, seconds to recover."""
    enough = 0.9 * peak.rps
    whole = (second for second, count in enumerate(after.by_second) if count >= enough)
    return {
        "peak_rps": round(peak.rps, 1),
        "goodput": round(during.rps / peak.rps, 3) if peak.rps else 0.0,
        "refused": during.errors.get("429", 0),
        "other_errors": sum(n for status, n in during.errors.items() if status != "429"),
        "recovered_after_s": next(whole, None),
    }


def _row(result: Result) -> dict[str, Any]:
    return {
        "rps": round(result.rps, 2),
        "p50_ms": result.quantile(0.5),
        "p99_ms": result.quantile(0.99),
        "errors": result.errors,
        "by_second": result.by_second,
    }


def streams(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Open `plan.concurrency` streams at once and look at every frame of each."""
    folder.mkdir(parents=True, exist_ok=True)
    progress.step(f"Start a Ray cluster and deploy the graph, {plan.placement}")
    with systems.ours(folder, plan.config, plan.placement) as system:
        system.stream(concurrency=32, seconds=3, seed=900, max_tokens=TOKENS)
        progress.step(f"Open {plan.concurrency} streams at once")
        seconds, found = system.stream(
            concurrency=plan.concurrency, seconds=0, seed=1, max_tokens=TOKENS
        )
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        "streams": len(found),
        "complete": sum(is_complete(stream) for stream in found),
        "seconds": round(seconds, 2),
        "rows": [asdict(stream) for stream in found],
    }


def is_complete(stream: Stream) -> bool:
    """Whether a stream of the static engine's answer has every frame."""
    return stream.whole and stream.tokens == TOKENS and stream.text.strip() == ANSWER
