"""Ten thousand schedules of a rollout in which anything may fail; see `rollout_world`."""

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from cluster.rollout.state import Status
from tests.cluster.rollout_world import Broken, schedule

SCHEDULES = 10_000


@pytest.fixture
def quiet() -> Iterator[None]:
    """Faults are injected by the thousand; their log is of no use."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
def test_no_schedule_breaks_an_invariant() -> None:
    ends: Counter[Status] = Counter()
    for seed in range(SCHEDULES):
        try:
            world = schedule(seed)
        except (AssertionError, Broken) as error:
            pytest.fail(f"seed {seed}: {error} (replay it with rollout_world.schedule({seed}))")
        ends.update(rollout.status for rollout in world.durable.rollouts.values())
    # The schedules are worth something only if both ends are reached, and often.
    assert ends[Status.PROMOTED] > SCHEDULES // 10
    assert ends[Status.ROLLED_BACK] > SCHEDULES // 10
    assert set(ends) == {Status.PROMOTED, Status.ROLLED_BACK}


def test_a_seed_is_one_schedule() -> None:
    first, again = schedule(7), schedule(7)
    assert first.durable == again.durable
    assert first.now == again.now
