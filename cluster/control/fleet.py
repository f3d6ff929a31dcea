"""The engine fleet over Ray Serve: one call to every live replica of the engine deployment."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from cluster.control.protocol import ENGINE_DEPLOYMENT, PLAIN_PREFIX, SERVE_APP, Proof
from cluster.records.adapter import ServedAdapter

_CALL_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 5.0


class ServeFleet:
    """Implements `cluster.control.protocol.Fleet`."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._killing: ThreadPoolExecutor | None = None

    async def _broadcast(self, method: str, *args: object, timeout_s: float) -> list[Any]:
        if self._handle is None:
            self._handle = serve.get_deployment_handle(ENGINE_DEPLOYMENT, SERVE_APP)
        response = self._handle.broadcast(method, *args)
        results = await asyncio.wait_for(response.results_async(), timeout_s)
        return list(results)

    async def prepare(self, adapter: ServedAdapter) -> list[Proof]:
        """Load and probe `adapter` on each replica."""
        return await self._broadcast("prepare", adapter, timeout_s=_CALL_TIMEOUT_S)

    async def retire(self, int_id: int, timeout_s: float) -> bool:
        """Have each replica unload `int_id` once it has no request of it in flight."""
        most = timeout_s + _CALL_TIMEOUT_S
        return all(await self._broadcast("retire", int_id, timeout_s, timeout_s=most))

    async def remove(self, int_id: int) -> bool:
        """Unload `int_id` and check each replica's own list."""
        return all(await self._broadcast("remove", int_id, timeout_s=_CALL_TIMEOUT_S))

    async def kill(self, name: str) -> int:
        """Refuse adapter `name` on each replica and cut off its requests; how many there were.

        Engines that serve a version of it merged into their model are included.
        """

        async def kill_on(deployment: str) -> int:
            handle = serve.get_deployment_handle(deployment, SERVE_APP)
            calls = handle.broadcast("kill", name)
            return sum(await asyncio.wait_for(calls.results_async(), _KILL_TIMEOUT_S))

        async def plain() -> int:
            if self._killing is None:
                # A thread of its own: the default executor may be busy with bills and digests.
                self._killing = ThreadPoolExecutor(1, "kill")
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._killing, _plain_deployments)
            names = await asyncio.wait_for(asked, _KILL_TIMEOUT_S)
            return sum(await asyncio.gather(*map(kill_on, names)))

        # All are called before any error is raised.
        found = await asyncio.gather(kill_on(ENGINE_DEPLOYMENT), plain(), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return sum(one for one in found if isinstance(one, int))


def _plain_deployments() -> list[str]:
    app = serve.status().applications.get(SERVE_APP)
    found = app.deployments if app is not None else {}
    return [name for name in found if name.startswith(PLAIN_PREFIX)]
