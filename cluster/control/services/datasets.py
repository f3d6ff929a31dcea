"""Dataset versions as a service."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cluster.control.database import Database
from cluster.dataset import read_manifest
from cluster.records.dataset import DatasetManifest
from cluster.registry import versions
from cluster.storage import require_stable


class DatasetService:
    """Implements `cluster.control.contracts.Datasets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, path: str) -> DatasetManifest:
        # Every byte is read, in a thread.
        digest = await asyncio.to_thread(require_stable, Path(path))
        manifest = await asyncio.to_thread(read_manifest, Path(path))
        with self._database.write() as tx:
            versions.register_dataset(tx, manifest, Path(path), digest, time.time())
        return manifest

    async def listed(self) -> list[DatasetManifest]:
        with self._database.read() as tx:
            return versions.datasets(tx)
