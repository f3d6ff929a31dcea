"""`python -m serve_app.bench.main gateway`: benchmarks anyone can run."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from cluster.errors import HeadraceError
from cluster.storage import write_atomic
from cluster.wheel.narrator import Narrator

_WORKDIR = Path(__file__).resolve().parents[2] / ".headrace" / "bench"


def main(arguments: list[str] | None = None) -> int:
    """Parse and run one benchmark; 2 on a mistake the caller can mend."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="BENCHMARK")
    gateway = verbs.add_parser("gateway", help="our graph beside LiteLLM, static engine")
    gateway.add_argument("--report", type=Path, help="where to write rows and medians as JSON")
    gateway.add_argument("--rounds", type=int, default=3)
    gateway.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    gateway.add_argument("--concurrency", type=int, default=128)
    gateway.add_argument("--workdir", type=Path, default=_WORKDIR)
    options = parser.parse_args(arguments)
    try:
        return _gateway(options)
    except HeadraceError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201 - a command's own output
        return 2


def _gateway(options: argparse.Namespace) -> int:
    from serve_app.bench import gateway

    narrator = Narrator()
    plan = gateway.Plan(options.rounds, options.seconds, options.concurrency)
    folder = options.workdir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Ray prints its advice on standard output.
    with (folder / "driver.log").open("w", encoding="utf-8") as log, redirect_stdout(log):
        found = gateway.run(folder, plan, narrator)
    narrator.step("Against LiteLLM at its best of one or two workers (medians of the rounds)")
    for name, value in found["ratios"].items():
        narrator.say(f"{value:6.2f} x  {name}")
    if options.report:
        write_atomic(options.report, json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
