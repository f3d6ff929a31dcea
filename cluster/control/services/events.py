"""The record of changes as a service."""

from __future__ import annotations

from typing import Any

from cluster.control.database import Database
from cluster.registry import events


class EventService:
    """Implements `cluster.control.contracts.Events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(self, limit: int = 100) -> list[dict[str, Any]]:
        with self._database.read() as tx:
            return events.listed(tx, limit)
