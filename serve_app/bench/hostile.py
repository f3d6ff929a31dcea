"""`scripts/bench hostile`: what one tenant's worst requests cost another tenant's client.

A client of one tenant asks steadily, alone and then beside each kind of attack by another tenant.
On the machine of the benchmark the attackers' own processes take their share of the cores as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.progress import ProgressReporter
from serve_app.bench import systems
from serve_app.bench.attacks import KINDS
from serve_app.bench.systems import System

_HOSTILE = "hostile"
_WARM_S, _AHEAD_S = 5.0, 1.0
#: Milliseconds below which a factor goes unnoticed.
_UNNOTICED_MS = 250.0
#: One tenant may fill no more than a part of a gateway, as configured for production.
_SETTINGS = ("gateway.max_tenant_share=0.5",)


@dataclass(frozen=True)
class Plan:
    """How long and against what."""

    placement: str = "fused"
    seconds: float = 8.0
    clients: int = 8
    """Hostile connections; kinds that only hold connections open have more."""
    engine: str = "static"
    kinds: tuple[str, ...] = KINDS
    config: Path = systems.REPOSITORY / "configs/serve/bench.yaml"


@dataclass(frozen=True)
class Row:
    """The victim beside one kind of attack. Latencies in milliseconds."""

    kind: str
    p50_ms: float
    p99_ms: float
    ratio: float
    """Of the p99 to that at rest."""
    answers: int
    errors: dict[str, int]
    attacker: dict[str, int]
    """What the attacker got, by status."""

    def holds(self, quiet_p99_ms: float) -> bool:
        """Whether the victim had no error and at most twice its latency, or what goes unnoticed."""
        return not self.errors and self.p99_ms <= max(2 * quiet_p99_ms, _UNNOTICED_MS)


def run(folder: Path, plan: Plan, progress: ProgressReporter) -> dict[str, Any]:
    """Measure the victim at rest, then beside each kind; raw rows and the worst of them."""
    with systems.ours(folder, plan.config, plan.placement, plan.engine, _SETTINGS) as system:
        from cluster.control.client import ControlClient
        from cluster.records.keys import KeyRequest

        control = ControlClient()
        wanted = KeyRequest(tenant=_HOSTILE)
        key = control.do(control.keys.issue(wanted, control.name, by_operator=True)).secret
        _measure(system, _WARM_S, 900)
        quiet = _measure(system, 2 * plan.seconds, 901)
        p99 = quiet.quantile(0.99)
        progress.say(f"at rest: p50 {quiet.quantile(0.5):.1f}  p99 {p99:.1f} ms")
        rows = list[Row]()
        for number, kind in enumerate(plan.kinds):
            rows.append(_beside(system, key, kind, plan, number=number, quiet_p99_ms=p99))
            row = rows[-1]
            progress.say(
                f"{kind:<26} p50 {row.p50_ms:7.1f}  p99 {row.p99_ms:7.1f} ms  {row.ratio:5.2f} x  "
                f"errors {row.errors}  attacker {row.attacker}"
            )
    return {
        "plan": {**asdict(plan), "config": plan.config.name},
        "quiet_p99_ms": p99,
        "worst_victim_ratio": max(row.ratio for row in rows),
        "worst_victim_p99_ms": max(row.p99_ms for row in rows),
        "victim_errors": sum(sum(row.errors.values()) for row in rows),
        "held": all(row.holds(p99) for row in rows),
        "not_held": [row.kind for row in rows if not row.holds(p99)],
        "rows": [asdict(row) for row in rows],
    }


def _measure(system: System, seconds: float, seed: int) -> Any:
    return system.measure(concurrency=1, seconds=seconds, seed=seed)


def _beside(
    system: System, key: str, kind: str, plan: Plan, *, number: int, quiet_p99_ms: float
) -> Row:
    seconds = plan.seconds + 2 * _AHEAD_S
    with _attack(system.url, key, kind, plan.clients, seconds) as attacker:
        try:  # it goes first: the victim is measured within it
            attacker.wait(_AHEAD_S)
        except subprocess.TimeoutExpired:
            pass
        found = _measure(system, plan.seconds, number)
        output, _ = attacker.communicate(timeout=seconds + 120)
    return Row(
        kind,
        found.quantile(0.5),
        found.quantile(0.99),
        round(found.quantile(0.99) / quiet_p99_ms, 3),
        len(found.latencies_ms),
        found.errors,
        json.loads(output),
    )


@contextmanager
def _attack(
    url: str, key: str, kind: str, clients: int, seconds: float
) -> Iterator[subprocess.Popen[str]]:
    arguments = ["--url", url, "--kind", kind, "--clients", str(clients), "--seconds", str(seconds)]
    process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
        [sys.executable, "-m", "serve_app.bench.attacks", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(key + "\n")
    process.stdin.flush()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
