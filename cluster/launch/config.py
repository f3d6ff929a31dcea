"""Configuration of a cluster on one machine."""

from __future__ import annotations

from cluster.config import BaseModelRef, ConfigModel


class LocalConfig(ConfigModel):
    """What is served, and from where. Paths are relative to the repository."""

    base_model: BaseModelRef
    """Change this line to stand the adapters on another model."""
    database: str = ""
    """Of the registry, postgresql://...; where empty, SQLite in the working folder."""
    serve: str
    """Configuration of the serving graph."""
    num_cpus: int = 10
    """Logical CPUs Ray schedules with; replicas share the machine's real ones."""
