"""Locks for changes of what serves: one adapter's at a time, or all adapters' exclusively.

Changes of different adapters run concurrently, so that one which drains its old version holds up no
other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class AdapterLocks:
    """One lock an adapter, and an exclusive mode over all of them (a readers-writer lock whose
    writer is preferred)."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._wanted = Counter[str]()
        self._under_way = 0
        self._all = asyncio.Lock()
        self._none = asyncio.Event()
        self._none.set()

    @asynccontextmanager
    async def one(self, adapter: str) -> AsyncIterator[None]:
        """Hold the lock of one adapter."""
        self._wanted[adapter] += 1
        lock = self._locks.setdefault(adapter, asyncio.Lock())
        try:
            async with lock:
                async with self._all:
                    self._under_way += 1
                    self._none.clear()
                try:
                    yield
                finally:
                    self._under_way -= 1
                    if not self._under_way:
                        self._none.set()
        finally:
            self._wanted[adapter] -= 1
            if not self._wanted[adapter]:
                del self._wanted[adapter], self._locks[adapter]

    @asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Hold every adapter's lock, once the changes under way have ended; none begins then."""
        async with self._all:
            await self._none.wait()
            yield
