"""A fake engine fleet that records the order of calls and fails where it is told to."""

from __future__ import annotations

import asyncio

from cluster.control.protocol import Proof
from cluster.records.adapter import ServedAdapter


class FakeFleet:
    """Implements `cluster.control.protocol.Fleet`."""

    def __init__(self, difference: float = 0.01, digest: str | None = None) -> None:
        self.difference = difference
        self.digest = digest
        self.calls: list[str] = []
        self.fail_on = ""
        self.drains = True
        self.goes_on: asyncio.Event | None = None
        """What a drain waits for, where it is to take long."""

    def _record(self, call: str) -> None:
        self.calls.append(call)
        if self.fail_on and call.startswith(self.fail_on):
            raise RuntimeError(f"{call} failed")

    async def prepare(self, adapter: ServedAdapter) -> list[Proof]:
        self._record(f"prepare {adapter.label}")
        digest = self.digest or adapter.digest
        return [Proof("r1", adapter.int_id, digest, self.difference)]

    async def retire(self, int_id: int, timeout_s: float) -> bool:
        self._record(f"retire {int_id}")
        if self.goes_on is not None:
            await self.goes_on.wait()
        return self.drains

    async def remove(self, int_id: int) -> bool:
        self._record(f"remove {int_id}")
        return True

    async def kill(self, name: str) -> int:
        self._record(f"kill {name}")
        return 3
