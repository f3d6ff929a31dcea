"""Time slices: more adapters than the engine has slots, without starvation.

The engine computes a bounded number of adapters at a time, first come first served, so that a few
busy ones could hold every slot. Here an adapter whose slice is over takes no more requests while
others wait; those in progress end, and its slot goes to the adapter that has waited longest, with
all of its requests at once (round-robin).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

#: How long an adapter keeps its slot while others wait. Longer turns cost less changing over.
TURN_S = 0.25


class AdapterTimeSlices:
    """Who may use the engine now. A request of the base model needs no slot."""

    def __init__(
        self, slots: int, turn_s: float = TURN_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._slots, self._turn_s, self._now = slots, turn_s, now
        self._under_way: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._waiting: OrderedDict[int, list[asyncio.Future[None]]] = OrderedDict()

    @property
    def active(self) -> int:
        """Adapters with requests under way."""
        return len(self._under_way)

    @asynccontextmanager
    async def using(self, adapter: int) -> AsyncIterator[None]:
        """Hold a slot of `adapter` for one request, once it is its turn."""
        await self._enter(adapter)
        try:
            yield
        finally:
            self._leave(adapter)

    async def _enter(self, adapter: int) -> None:
        if adapter in self._under_way:
            if not self._turn_is_over(adapter):
                self._under_way[adapter] += 1
                return
        elif self.active < self._slots and not self._waiting:
            self._begin(adapter, 1)
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(adapter, []).append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self._leave(adapter)
            else:
                self._give_up(adapter, admitted)
            raise

    def _turn_is_over(self, adapter: int) -> bool:
        return bool(self._waiting) and self._now() - self._since[adapter] >= self._turn_s

    def _begin(self, adapter: int, requests: int) -> None:
        self._under_way[adapter] = requests
        self._since[adapter] = self._now()

    def _leave(self, adapter: int) -> None:
        self._under_way[adapter] -= 1
        if self._under_way[adapter] == 0:
            del self._under_way[adapter], self._since[adapter]
            self._admit()

    def _give_up(self, adapter: int, admitted: asyncio.Future[None]) -> None:
        queue = self._waiting.get(adapter, [])
        if admitted in queue:
            queue.remove(admitted)
            if not queue:
                del self._waiting[adapter]
                self._admit()

    def _admit(self) -> None:
        """Give free slots to the adapters that have waited longest; one whose slice is over waits
        until its own last request has ended, unless no other adapter waits any more."""
        for adapter in list(self._waiting):
            if self.active >= self._slots:
                break
            if adapter not in self._under_way:
                self._let_in(adapter)
        if all(adapter in self._under_way for adapter in self._waiting):
            for adapter in list(self._waiting):
                self._let_in(adapter)

    def _let_in(self, adapter: int) -> None:
        # A request that was cancelled in this very moment is not counted.
        queue = [one for one in self._waiting.pop(adapter) if not one.done()]
        if not queue:
            return
        if adapter not in self._under_way:
            self._begin(adapter, 0)
        self._under_way[adapter] += len(queue)
        for admitted in queue:
            admitted.set_result(None)
