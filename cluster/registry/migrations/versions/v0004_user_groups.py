"""The group of users that an answer on trial was for.

Answers that were kept before are of no known group, so nothing can be judged by them any more.
"""

from __future__ import annotations

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
