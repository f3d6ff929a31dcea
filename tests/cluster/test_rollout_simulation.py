"""Schedules of a rollout in which anything may fail; `scripts/test simulation` runs many more."""

from cluster.rollout.state import Status
from tests.cluster.rollout_world import schedule
from tests.simulation import VERDICTS, run_all

SCHEDULES = 500


def test_no_schedule_breaks_an_invariant() -> None:
    ends = run_all(SCHEDULES)
    # The schedules are worth something only if both ends are reached, and often.
    assert ends[Status.PROMOTED] > SCHEDULES // 10
    assert ends[Status.ROLLED_BACK] > SCHEDULES // 10
    assert set(ends) == {Status.PROMOTED, Status.ROLLED_BACK} | VERDICTS
    assert min(ends[said] for said in VERDICTS) > SCHEDULES // 200


def test_a_seed_is_one_schedule() -> None:
    first, again = schedule(7), schedule(7)
    assert first.durable == again.durable
    assert first.now == again.now
