"""`scripts/fuzz TARGET`: fuzz one target, or all in turn, for some minutes or cases."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import TARGETS, timed

_BATCH = 2000


def fuzz(name: str, seconds: float, first: int = 0) -> int:
    """Fuzz one target with new seeds until the time is over; how many cases were tried.

    Raises what the target does; hypothesis has made the case small then, and names it.
    """
    strategy, target = TARGETS[name]
    tried, number, deadline = 0, first, time.monotonic() + seconds
    while time.monotonic() < deadline:
        number += 1

        @seed(number)
        @settings(
            max_examples=_BATCH,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(value: Any) -> None:
            nonlocal tried
            tried += 1
            timed(target, value)

        one()
    return tried


def main(arguments: list[str] | None = None) -> int:
    """Parse, fuzz, print; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", choices=(*TARGETS, "api", "all"))
    parser.add_argument("--minutes", type=float, default=1.0, help="of each target (default: 1)")
    parser.add_argument("--cases", type=int, default=2000, help="of the API (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = [*TARGETS, "api"] if options.target == "all" else [options.target]
    for name in names:
        if name == "api":
            from tests.fuzz.api import fuzz as fuzz_api

            seen = dict(sorted(fuzz_api(options.cases, options.seed).items()))
            print(f"api: {seen}", flush=True)  # noqa: T201 - a command's own output
        else:
            tried = fuzz(name, 60 * options.minutes, options.seed)
            print(f"{name}: {tried} cases, nothing found", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
