"""Ten thousand schedules of a rollout in which anything may fail; see `rollout_world`."""

import logging
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from cluster.rollout.state import Status
from tests.cluster.rollout_world import Broken, schedule

SCHEDULES = 10_000
_PART = 500
_WORKERS = 2
_VERDICTS = {"better", "worse", "undecided"}


def _ends(seeds: range) -> Counter[str]:
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
            ends.update({said} & _VERDICTS)
    return ends


def test_no_schedule_breaks_an_invariant() -> None:
    parts = [range(first, first + _PART) for first in range(0, SCHEDULES, _PART)]
    ends: Counter[str] = Counter()
    with ProcessPoolExecutor(_WORKERS, multiprocessing.get_context("spawn")) as pool:
        try:
            for found in pool.map(_ends, parts):
                ends += found
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            pytest.fail(str(error))
    # The schedules are worth something only if both ends are reached, and often.
    assert ends[Status.PROMOTED] > SCHEDULES // 10
    assert ends[Status.ROLLED_BACK] > SCHEDULES // 10
    assert set(ends) == {Status.PROMOTED, Status.ROLLED_BACK} | _VERDICTS
    assert min(ends[said] for said in _VERDICTS) > SCHEDULES // 200


def test_a_seed_is_one_schedule() -> None:
    first, again = schedule(7), schedule(7)
    assert first.durable == again.durable
    assert first.now == again.now
