"""Which adapters a replica holds: loaded and proved when wanted, dropped when idle and in the way.

What is live is loaded before the replica takes traffic, up to `eager`, those with most traffic
first; the others when the first request for them comes. A version is proved by its golden prompts
once in the life of the replica; after that its digest is enough. Knows neither Ray nor vLLM.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Protocol

from cluster.control.protocol import Proof
from cluster.control.swap import check_proofs
from cluster.errors import ArtifactError, SwapError
from cluster.records.adapter import ServedAdapter
from cluster.storage import require_stable
from serve_app.engine.residents import ResidentAdapters
from serve_app.tasks import spawn_detached

logger = logging.getLogger(__name__)

#: Seconds for which a version is taken as not desired without asking again.
_MISSED_S = 1.0
#: How long requests for an adapter wait for one of those held to be idle, where there is room for
#: no more: all who wait, side by side.
_ROOM_S = 10.0
#: How long they wait until one that is always in use is evicted, so that busy adapters starve no
#: other; the next one is evicted after twice as long.
_PATIENCE_S = 0.25


class AdapterEngine(Protocol):
    """The part of an engine that holds adapters."""

    residents: ResidentAdapters

    async def load(self, adapter: ServedAdapter, *, probe: bool) -> float:
        """Make `adapter` resident; its difference from the trainer, 0 without `probe`."""
        ...

    async def unload(self, int_id: int) -> bool:
        """Remove a version; whether the engine confirms it."""
        ...


class DesiredAdapters(Protocol):
    """The part of the serving contract that says what replicas have to hold."""

    async def desired(self) -> list[ServedAdapter]:
        """Every version, most urgent first, without golden probes: there may be thousands."""
        ...

    async def desired_version(self, int_id: int) -> ServedAdapter | None:
        """One version with its golden probes, if it is desired."""
        ...


class Loader:
    """One replica's adapters. `capacity` is the most it holds at a time."""

    def __init__(
        self,
        engine: AdapterEngine,
        serving: DesiredAdapters,
        replica: str,
        *,
        capacity: int,
        eager: int,
    ) -> None:
        self._engine, self._serving, self._replica = engine, serving, replica
        self._capacity, self._eager = capacity, min(eager, capacity)
        self._changing = asyncio.Lock()
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._proved: dict[int, str] = {}
        self._missed: set[int] = set()
        self._unwanted: set[int] = set()

    async def prepare(self, adapter: ServedAdapter) -> Proof:
        """Load `adapter` and show that it is what the trainer made.

        Raises:
            SwapError: there is no room, every version held being in use; or it was switched off
                meanwhile.
        """
        residents, until = self._engine.residents, time.monotonic() + _ROOM_S
        kills = residents.kills(adapter.name)
        async with self._changing:
            proof = await self._load(adapter, until, probe=True)
            if residents.kills(adapter.name) != kills:
                # Loaded as if it had not been; it may have requests again by now.
                residents.refuse(adapter.int_id)
                raise SwapError(f"{adapter.label} was switched off while it was loaded")
            return proof

    async def retire(self, int_id: int, timeout_s: float) -> bool:
        """Refuse new requests of a version, wait for those in flight and unload it; whether the
        engine confirms that. One that is not done in time is kept, and refused."""
        drained = await self._engine.residents.drain(int_id, timeout_s)
        return drained and await self._remove_drained(int_id)

    async def _remove_drained(self, int_id: int) -> bool:
        async with self._changing:
            residents = self._engine.residents
            # While this waited its turn it may have been prepared again, and be in use.
            if residents.holds(int_id) and not residents.refuses(int_id):
                return False
            return await self._remove(int_id)

    async def remove(self, int_id: int) -> bool:
        """Unload a version; whether the engine confirms it."""
        async with self._changing:
            return await self._remove(int_id)

    async def _remove(self, int_id: int) -> bool:
        self._proved.pop(int_id, None)
        return await self._engine.unload(int_id)

    async def hold(self, adapter: ServedAdapter) -> None:
        """Load what gateways are sent to and this replica does not hold, if it is still wanted."""
        if (
            self._engine.residents.accepts_requests(adapter.int_id)
            or adapter.int_id in self._missed
        ):
            return
        task = self._loading.get(adapter.int_id)
        if task is None:
            # Apart: the first of those who wait may leave.
            task = spawn_detached(self._fetch(adapter))
            self._loading[adapter.int_id] = task
            task.add_done_callback(lambda _task: self._loading.pop(adapter.int_id, None))
        await asyncio.shield(task)

    async def reconcile(self) -> None:
        """Hold what is wanted, and what was not wanted twice and is idle no more."""
        residents = self._engine.residents
        desired = await self._serving.desired()
        first = [(one, residents.kills(one.name)) for one in desired[: self._eager]]
        for adapter, kills in first:
            if residents.holds(adapter.int_id):
                continue
            wanted = await self._serving.desired_version(adapter.int_id)
            if wanted is not None:
                await self._load_proved(wanted, kills, time.monotonic())
        # Twice unwanted and idle: a swap that is removing a version itself is given its time.
        unwanted = self._engine.residents.held.keys() - {one.int_id for one in desired}
        for int_id in unwanted & self._unwanted:
            if await self._engine.residents.drain(int_id, 0.0):
                await self._remove_drained(int_id)
        self._unwanted = set(unwanted)

    async def _fetch(self, adapter: ServedAdapter) -> None:
        kills = self._engine.residents.kills(adapter.name)
        try:
            wanted = await self._serving.desired_version(adapter.int_id)
            if wanted is not None:
                await self._load_proved(wanted, kills, time.monotonic() + _ROOM_S)
        except Exception:  # the control plane may be restarting; the gateway learns it is not here
            logger.exception("could not ask for %s", adapter.label)
        if not self._engine.residents.holds(adapter.int_id):
            self._missed.add(adapter.int_id)
            later = asyncio.get_running_loop().call_later
            later(_MISSED_S, self._missed.discard, adapter.int_id)

    async def _load_proved(self, adapter: ServedAdapter, kills: int, until: float) -> None:
        """Load what was wanted when the adapter had been switched off `kills` times; wait for room
        `until` then."""
        async with self._changing:
            if self._engine.residents.holds(adapter.int_id):
                return
            known = self._proved.get(adapter.int_id) == adapter.digest
            try:
                proof = await self._load(adapter, until, probe=not known)
                if not known:
                    check_proofs(adapter, [proof])
                elif proof.digest != adapter.digest:
                    raise ArtifactError(f"{adapter.path} is not what was proved here")
                if self._engine.residents.kills(adapter.name) != kills:
                    raise SwapError(f"{adapter.label} was switched off while it was loaded")
                self._proved[adapter.int_id] = adapter.digest
            except Exception:  # the others are served, and the replica starts; it is tried again
                logger.exception("%s is not served here", adapter.label)
                if self._engine.residents.holds(adapter.int_id):
                    await self._engine.unload(adapter.int_id)

    async def _load(self, adapter: ServedAdapter, until: float, *, probe: bool) -> Proof:
        digest = await asyncio.to_thread(require_stable, Path(adapter.path))
        await self._make_room(adapter, until)
        difference = await self._engine.load(adapter, probe=probe)
        return Proof(self._replica, adapter.int_id, digest, difference)

    async def _make_room(self, adapter: ServedAdapter, until: float) -> None:
        residents, patience = self._engine.residents, _PATIENCE_S
        try:
            while len(residents.held) >= self._capacity and not residents.holds(adapter.int_id):
                left = max(0.0, until - time.monotonic())
                idle = residents.least_recently_used_idle()
                if idle is None:
                    idle = await residents.until_one_is_idle(min(left, patience))
                if idle is not None:
                    await self._engine.unload(idle)
                elif left > patience:
                    residents.evict_lru_busy()
                    patience *= 2
                else:
                    raise SwapError(
                        f"no room for {adapter.label}: all {self._capacity} adapters held are in "
                        "use; raise engine.max_cpu_loras"
                    )
        finally:
            residents.cancel_evictions()
