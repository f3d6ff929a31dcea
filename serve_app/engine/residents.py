"""Which adapter versions a replica holds, and how many requests each has in flight."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.records.adapter import ServedAdapter
from serve_app.protocol import AdapterGone, AdapterKilled


class ResidentAdapters:
    """Admits requests to resident versions only, lets one drain, and cuts a killed one off."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, ServedAdapter] = OrderedDict()
        """Least recently used first."""
        self._in_flight: dict[int, list[asyncio.Task[object]]] = {}
        self._draining: set[int] = set()
        self._killed: set[int] = set()
        self._leaving: set[int] = set()
        self._idle = asyncio.Condition()
        self._wanting_room = 0
        self._kills: dict[str, int] = {}

    def kills(self, name: str) -> int:
        """How often adapter `name` was switched off: what was begun before must not serve after."""
        return self._kills.get(name, 0)

    def refuses(self, int_id: int) -> bool:
        """Whether a version takes no requests though it is held."""
        return int_id in self._killed or int_id in self._draining

    @property
    def held(self) -> dict[int, ServedAdapter]:
        """The versions held, by engine id."""
        return dict(self._held)

    def holds(self, int_id: int) -> bool:
        """Whether a version is held."""
        return int_id in self._held

    def accepts_requests(self, int_id: int) -> bool:
        """Whether a version is held, and is not to make room for another."""
        return int_id in self._held and int_id not in self._leaving

    def evict_lru_busy(self) -> None:
        """Have one more version make room: of those that are always in use, the one whose last
        request began longest ago. Its requests end; who asks for it now is to wait."""
        staying = (key for key in self._held if key not in self._leaving)
        self._leaving.update(key for key in [next(staying, None)] if key is not None)

    def cancel_evictions(self) -> None:
        """Evict none of the versions that were chosen for it."""
        self._leaving.clear()

    def least_recently_used_idle(self) -> int | None:
        """The version that has had nothing in flight for longest; None where all are in use."""
        return next((key for key in self._held if not self._in_flight.get(key)), None)

    async def until_one_is_idle(self, timeout_s: float) -> int | None:
        """The LRU idle version as soon as there is one; None where all stay in use."""
        self._wanting_room += 1
        try:
            async with asyncio.timeout(timeout_s), self._idle:
                await self._idle.wait_for(lambda: self.least_recently_used_idle() is not None)
        except TimeoutError:
            return None
        finally:
            self._wanting_room -= 1
        return self.least_recently_used_idle()

    def add(self, adapter: ServedAdapter) -> None:
        """Take requests for `adapter` from now on."""
        self._held[adapter.int_id] = adapter
        self._draining.discard(adapter.int_id)
        self._killed.discard(adapter.int_id)

    def discard(self, int_id: int) -> None:
        """Forget a version; nothing may be in flight for it."""
        assert not self._in_flight.get(int_id), f"{int_id} still has requests in flight"
        self._held.pop(int_id, None)
        self._draining.discard(int_id)
        self._killed.discard(int_id)

    @contextmanager
    def using(self, adapter: ServedAdapter) -> Iterator[None]:
        """Hold `adapter` for the length of one request.

        Raises:
            AdapterGone: it is not resident, or draining.
            AdapterKilled: it is switched off, or was while the request ran.
        """
        key, task = adapter.int_id, asyncio.current_task()
        assert task is not None, "requests run in tasks"
        if key in self._killed:
            raise AdapterKilled(adapter.label)
        if self._held.get(key) != adapter or key in self._draining:
            raise AdapterGone(adapter.label)
        self._in_flight.setdefault(key, []).append(task)
        self._held.move_to_end(key)
        try:
            yield
        except asyncio.CancelledError:
            # Cancelled once, and by `kill`: the caller is still there and learns why.
            if key in self._killed and task.uncancel() == 0:
                raise AdapterKilled(adapter.label) from None
            raise
        finally:
            self._in_flight[key].remove(task)
            if not self._in_flight[key]:
                del self._in_flight[key]
                if key in self._draining or self._wanting_room:
                    asyncio.ensure_future(self._notify())  # noqa: RUF006 - awaits only the lock

    async def _notify(self) -> None:
        async with self._idle:
            self._idle.notify_all()

    def in_flight(self, int_id: int) -> int:
        """Requests of this version now in the engine."""
        return len(self._in_flight.get(int_id, ()))

    def kill(self, name: str) -> int:
        """Refuse every version of adapter `name` from now on and end its requests; how many."""
        ended = 0
        self._kills[name] = self._kills.get(name, 0) + 1
        for key in [key for key, adapter in self._held.items() if adapter.name == name]:
            ended += self.refuse(key)
        return ended

    def refuse(self, int_id: int) -> int:
        """Refuse one version, as if it was held when its adapter was killed; how many it ended."""
        self._killed.add(int_id)
        tasks = self._in_flight.get(int_id, ())
        for task in tasks:
            task.cancel()
        return len(tasks)

    async def drain(self, int_id: int, timeout_s: float) -> bool:
        """Refuse new requests of the version and wait until the last one is done."""
        self._draining.add(int_id)
        try:
            async with asyncio.timeout(timeout_s), self._idle:
                await self._idle.wait_for(lambda: not self._in_flight.get(int_id))
        except TimeoutError:
            return False
        return True
