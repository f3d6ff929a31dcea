"""The answers that rollouts under way may be judged by, so that feedback outlives a restart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from cluster.registry.schema import RolloutAnswer

#: The newest of all rollouts together; of older ones feedback counts no more.
KEPT = 1_000_000
_AT_ONCE = 500


def note(
    tx: Session,
    rollout: int,
    phase: int,
    answered: Mapping[str, tuple[str, int, str]],
    kept: int = KEPT,
) -> None:
    """Remember the side, group of users and account of each answer, by trace id; what is known
    stays as it is."""
    traces = list(answered)
    for start in range(0, len(traces), _AT_ONCE):
        some = traces[start : start + _AT_ONCE]
        asked = select(RolloutAnswer.trace_id).where(RolloutAnswer.trace_id.in_(some))
        known = set(tx.scalars(asked))
        rows = [
            {
                "trace_id": trace_id,
                "rollout_id": rollout,
                "phase": phase,
                "side": answered[trace_id][0],
                "user_group": answered[trace_id][1],
                "account": answered[trace_id][2],
                "counted": [],
            }
            for trace_id in some
            if trace_id not in known
        ]
        if rows:
            tx.execute(insert(RolloutAnswer), rows)
    newest = tx.scalar(select(func.max(RolloutAnswer.number))) or 0
    tx.execute(delete(RolloutAnswer).where(RolloutAnswer.number <= newest - kept))


def get(tx: Session, trace_id: str) -> RolloutAnswer | None:
    """The answer with this trace id, if a rollout under way may be judged by it."""
    return tx.scalar(select(RolloutAnswer).where(RolloutAnswer.trace_id == trace_id))


def judged(tx: Session, trace_id: str, counted: Iterable[str]) -> None:
    """Keep which of an answer's outcomes have counted."""
    wanted = RolloutAnswer.trace_id == trace_id
    tx.execute(update(RolloutAnswer).where(wanted).values(counted=sorted(counted)))


def forget(tx: Session, rollout: int, most: int = 10 * _AT_ONCE) -> bool:
    """Forget `most` answers of a rollout that ends; whether some are left."""
    mine = select(RolloutAnswer.number).where(RolloutAnswer.rollout_id == rollout)
    numbers = tx.scalars(mine.limit(most)).all()
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        tx.execute(delete(RolloutAnswer).where(RolloutAnswer.number.in_(some)))
    return len(numbers) == most
