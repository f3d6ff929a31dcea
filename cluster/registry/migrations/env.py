"""Alembic runs this; the connection is handed over by `cluster.registry.db`."""

from __future__ import annotations

from alembic import context

from cluster.registry.schema import Table

connection = context.config.attributes["connection"]
# SQLite alters a table by making it anew.
context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
