"""The writers of the audit log, who bounded a key, and whose key an answer on trial was for.

Writers that the meter has rows of are registered with the last of them; the control plane
registers the others at its first start. Who bounded a key is not known: taken to be an operator.
Answers that were kept before are of no known key, so no rollout is judged by them any more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "writers",
        sa.Column("writer", sa.String(128), primary_key=True),
        sa.Column("changes", sa.Boolean(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )
    op.execute(
        sa.text(
            "INSERT INTO writers (writer, changes, entries, head, updated_at) "
            "SELECT writer, FALSE, MAX(after), '', MAX(at) FROM token_use GROUP BY writer"
        )
    )
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("held", sa.JSON(), nullable=True))
    keys = sa.table("api_keys", sa.column("held", sa.JSON))
    op.get_bind().execute(sa.update(keys).values(held=["models", "end", "limits"]))
    with op.batch_alter_table("api_keys") as table:
        table.alter_column("held", existing_type=sa.JSON(), nullable=False)
    _by_account()
    op.execute(sa.text("DELETE FROM rollout_answers"))
    with op.batch_alter_table("rollout_answers") as table:
        table.add_column(sa.Column("account", sa.String(160), nullable=False))


def _by_account() -> None:
    """What was seen of rollouts under way is put to an account without a name."""
    rollouts = sa.table(
        "rollouts", sa.column("rollout_id", sa.Integer), sa.column("state", sa.JSON)
    )
    connection = op.get_bind()
    found = connection.execute(sa.text("SELECT name, owner FROM adapters"))
    owners = {str(name): str(owner) for name, owner in found}
    for number, state in connection.execute(sa.select(rollouts)).all():
        sides = {side: {"": groups} for side, groups in state.get("sides", {}).items()}
        cells = {phase: {"": seen} for phase, seen in state.get("evidence", {}).items()}
        name = str(state.get("candidate", {}).get("name", ""))
        more = {"sides": sides, "cells": cells, "owner": owners.get(name, "")}
        change = sa.update(rollouts).where(rollouts.c.rollout_id == number)
        connection.execute(change.values(state={**state, **more}))
