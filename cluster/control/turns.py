"""Whose turn it is to change what serves: one change of an adapter at a time, or one of all.

Changes of different adapters go side by side, so that one which waits for its old version's last
request holds up no other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Hands out turns, in no particular order but that who wants all of them is let in soon."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._wanted = Counter[str]()
        self._under_way = 0
        self._all = asyncio.Lock()
        self._none = asyncio.Event()
        self._none.set()

    @asynccontextmanager
    async def of(self, adapter: str) -> AsyncIterator[None]:
        """A turn with one adapter."""
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
    async def everywhere(self) -> AsyncIterator[None]:
        """A turn with every adapter, once those under way are over; none begins meanwhile."""
        async with self._all:
            await self._none.wait()
            yield
