"""`scripts/test simulation`: schedules of rollouts in which anything may fail, seed by seed."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from cluster.printing import printable
from tests.cluster.rollout_world import Broken, schedule

SCHEDULES = 10_000
_PART = 100
_WORKERS = 2
VERDICTS = frozenset({"better", "worse", "undecided"})


def run(seeds: range) -> Counter[str]:
    """How the rollouts of these schedules ended, and what the verdicts of A/B tests were.

    Raises:
        RuntimeError: an invariant is broken; it names the seed.
    """
    logging.disable(logging.CRITICAL)  # faults are injected by the thousand
    ends: Counter[str] = Counter()
    for seed in seeds:
        try:
            world = schedule(seed)
        except (AssertionError, Broken) as error:
            replay = f"replay it with rollout_world.schedule({seed})"
            raise RuntimeError(f"seed {seed}: {error} ({replay})") from error
        for rollout in world.durable.rollouts.values():
            ends[rollout.status] += 1
            said = rollout.reason.partition(":")[0]
            ends.update({said} & VERDICTS)
    return ends


def run_all(schedules: int, first: int = 0, *, progress: bool = False) -> Counter[str]:
    """Run `schedules` seeds from `first` on in worker processes.

    Raises:
        RuntimeError: an invariant is broken.
    """
    last = first + schedules
    parts = [range(start, min(start + _PART, last)) for start in range(first, last, _PART)]
    ends: Counter[str] = Counter()
    with ProcessPoolExecutor(_WORKERS, multiprocessing.get_context("spawn")) as pool:
        try:
            for number, found in enumerate(pool.map(run, parts), 1):
                ends += found
                if progress:
                    done = min(number * _PART, schedules)
                    print(f"\r{done} of {schedules}", end="", file=sys.stderr)  # noqa: T201
        except RuntimeError:
            pool.shutdown(cancel_futures=True)
            raise
    return ends


def main(arguments: list[str] | None = None) -> int:
    """Run, and print how the rollouts ended; 1 where an invariant is broken."""
    parser = argparse.ArgumentParser(prog="scripts/test simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=SCHEDULES)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args(arguments)
    try:
        ends = run_all(options.schedules, options.first, progress=sys.stderr.isatty())
    except RuntimeError as error:
        print(printable(str(error)), file=sys.stderr)  # noqa: T201
        return 1
    print(f"{options.schedules} schedules: {dict(sorted(ends.items()))}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
