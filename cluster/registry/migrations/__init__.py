"""Alembic migrations of the registry; `cluster.registry.db` runs them."""
