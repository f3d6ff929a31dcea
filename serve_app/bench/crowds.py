"""`scripts/bench crowd`: what many adapters cost one engine, and the ways round it.

Each engine runs in a process of its own (`serve_app.bench.crowd`), one after another.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.progress import ProgressReporter
from serve_app.bench import versions
from serve_app.bench.systems import REPOSITORY
from serve_app.config import EngineConfig

_NAME = "crowd"
_MODEL = REPOSITORY / "cluster/models/headrace-mini"
_MAKE_S = 3600.0
_RUN_S = 1800.0
_TOGETHER = ("--base", "--mixed", "1", "--mixed", "8", "--apart", "8")
#: As our own graph does: one core is left to the client.
_ENGINE = ("env", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=0")


@dataclass(frozen=True)
class Plan:
    """How many adapters, how long, how often: many short rounds, for the machine's speed drifts."""

    adapters: int = 1000
    rounds: int = 12
    seconds: float = 3.0
    held: int = EngineConfig().max_cpu_loras
    """Adapters that one of the engines has room for; the others hold all."""


def run(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Make the adapters, measure, and compare medians of the rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    progress.step(f"Make {plan.adapters} adapters and their offline answers (once a machine)")
    made = versions.made(_MODEL, folder, [f"{_NAME}:{plan.adapters}"], _MAKE_S)
    merged = _merged(folder, made)
    rows: list[dict[str, Any]] = []

    def measure(what: str, *arguments: str) -> None:
        progress.step(what)
        for row in _crowd(made, plan, arguments):
            rows.append(row)
            progress.say(
                f"{row['name']:<14} {row['tokens_per_s']:7.0f} tokens/s  {row['requests']:5d} "
                f"answers, {row['right']} right, {row['wrong']} wrong, {row['failed']} failed  "
                f"{row['memory_mib']:6.0f} MiB"
            )

    many = sorted({8, min(64, plan.adapters), plan.adapters})
    zipf = [text for count in many for text in ("--zipf", str(count))]
    measure("One engine with adapters", *_TOGETHER, *zipf)
    few = ("--zipf", "8", "--zipf", str(plan.adapters), "--held", str(plan.held))
    measure(f"An engine with room for {plan.held} of them", *few)
    measure("The base model in an engine without adapters", "--plain", "base, plain")
    one = ("--plain", "merged, plain", "--one", f"{_NAME}@1", "--model", str(merged))
    measure("One adapter merged into the model, in an engine without adapters", *one)
    measure("The traffic of eight adapters by PEFT, one request after another", "--peft", "8")
    return {
        "plan": asdict(plan),
        "ratios": ratios(rows, plan),
        "memory_mib": {
            # Of the first round, from few adapters to many: what was held once, stays.
            count: next(r["memory_mib"] for r in rows if r["name"] == f"{count} by Zipf")
            for count in many
        },
        "answers": sum(row["requests"] for row in rows),
        "wrong": sum(row["wrong"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
        "rows": rows,
    }


def ratios(rows: list[dict[str, Any]], plan: Plan) -> dict[str, float]:
    """Throughputs side by side: medians of the rounds' ratios within one engine, ratios of the
    rounds' medians between two, which ran one after another."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["name"]].append(float(row["tokens_per_s"]))

    def within(one: str, other: str) -> float:
        pairs = zip(found[one], found[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    def between(one: str, other: str) -> float:
        return round(statistics.median(found[one]) / statistics.median(found[other]), 3)

    many, held = plan.adapters, plan.held
    return {
        "8 adapters mixed to the same requests apart": within("8 mixed", "8 apart"),
        "8 adapters mixed to 1": within("8 mixed", "1 mixed"),
        "8 adapters mixed to PEFT's set_adapter": between("8 mixed", "8 by PEFT"),
        "1 adapter to the base model, in one engine": within("1 mixed", "base alone"),
        "base model without adapters' engine to with": between("base, plain", "base alone"),
        "1 adapter merged to beside": between("merged, plain", "1 mixed"),
        f"{many} registered to 8, by Zipf": within(f"{many} by Zipf", "8 by Zipf"),
        f"{many} registered to 8, by Zipf, {held} held": within(
            f"{many} by Zipf, {held} held", f"8 by Zipf, {held} held"
        ),
    }


def _crowd(made: Path, plan: Plan, arguments: tuple[str, ...]) -> list[dict[str, Any]]:
    command = [
        *(*_ENGINE, sys.executable, "-m", "serve_app.bench.crowd", "--made", str(made)),
        *(("--model", str(_MODEL)) if "--model" not in arguments else ()),
        *("--rounds", str(plan.rounds), "--seconds", str(plan.seconds), *arguments),
    ]
    done = subprocess.run(  # noqa: S603 - our own command line, no shell
        command, check=True, timeout=_RUN_S, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _merged(folder: Path, made: Path) -> Path:
    from cluster.bundle import merge

    merged = folder / f"{made.name}-merged"
    if not (merged / "tokenizer.json").exists():
        merge.merge(_MODEL, made / _NAME / "1", merged, "float32")
        merge.save_tokenizer(_MODEL, merged)
    return merged
