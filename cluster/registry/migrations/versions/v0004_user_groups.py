"""The group of users that an answer on trial was for, and what was seen of a rollout by its phases.

Answers that were kept before are of no known group, so nothing can be judged by them any more. What
was seen before the present phase is put to the one before it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.text("DELETE FROM rollout_answers"))
    # SQLite adds no column that must be given.
    with op.batch_alter_table("rollout_answers") as table:
        table.add_column(sa.Column("user_group", sa.Integer(), nullable=False))
    rollouts = sa.table(
        "rollouts", sa.column("rollout_id", sa.Integer), sa.column("state", sa.JSON)
    )
    connection = op.get_bind()
    for number, state in connection.execute(sa.select(rollouts)).all():
        change = sa.update(rollouts).where(rollouts.c.rollout_id == number)
        connection.execute(change.values(state=_by_phases(state)))


def _by_phases(state: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in state.items() if name not in ("seen", "whole")}
    seen, phase = state.get("seen"), int(state.get("phase", 0))
    if seen is None:
        return state
    evidence = {str(phase): seen}
    phases = state["plan"]["phases"]
    if phase and phases[phase - 1].get("shadow") == phases[phase].get("shadow"):
        evidence[str(phase - 1)] = _less(state["whole"], seen)
    return {**kept, "evidence": evidence}


def _less(whole: Any, part: Any) -> Any:
    """What is in `whole` and not in `part`, of sums in mappings of mappings."""
    if isinstance(whole, dict):
        return {name: _less(value, part[name]) for name, value in whole.items()}
    return whole - part
