"""Connections to every replica of a deployment, and which of them takes the next call.

Owns finding replicas again and again, as they come and go; knows no Ray. A caller without any
replica waits for one, within bounds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from serve_app.rpc.client import Connection, OnItem, ReplicaLost, connect
from serve_app.rpc.server import Address
from serve_app.tasks import spawn_detached

logger = logging.getLogger(__name__)
_LOOK_S = 3.0
_LOOK_AGAIN_S = 0.25
_WAIT_S = 10.0

Discover = Callable[[], Awaitable[Sequence[Address]]]
Among = Callable[[list[Connection]], list[Connection]]
"""Those of the usable replicas that a call may go to; never none."""


class Pool:
    """Calls the less busy of two replicas taken at random."""

    def __init__(self, name: str, discover: Discover, *, look_s: float = _LOOK_S) -> None:
        self._name, self._discover, self._look_s = name, discover, look_s
        self._connections: dict[str, Connection] = {}
        self._found = asyncio.Event()
        self._missed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @property
    def reachable(self) -> bool:
        """Whether a replica can be called now. Looking for them begins when this is first asked."""
        if self._follower is None:
            self._follower = spawn_detached(self._follow())
        return any(one.usable for one in self._connections.values())

    async def call(
        self, method: str, *arguments: Any, again: bool = False, among: Among | None = None
    ) -> Any:
        """The result of `method` on one replica.

        Args:
            method: one of the replica's.
            arguments: what crosses; pickled.
            again: retry once on another replica if the first is lost.
            among: the replicas that may be called; None is all.

        Raises:
            ReplicaLost: the replica went away, or there was none for ten seconds.
            CallFailed: the method raised.
        """
        connection = await self._one(among)
        try:
            return await connection.call(method, *arguments)
        except ReplicaLost:
            self._missed.set()
            if not again:
                raise
        return await (await self._one(among)).call(method, *arguments)

    async def stream(
        self,
        method: str,
        *arguments: Any,
        among: Among | None = None,
        on_item: OnItem | None = None,
    ) -> AsyncGenerator[Any, None]:
        """The items of `method` on one replica; `among` and errors as in `call`, `on_item` as in
        `Connection.stream`.
        """
        connection = await self._one(among)
        try:
            async with aclosing(connection.stream(method, *arguments, on_item=on_item)) as items:
                async for item in items:
                    yield item
        except ReplicaLost:
            self._missed.set()
            raise

    async def close(self) -> None:
        """Stop looking and hang up."""
        if self._follower is not None:
            self._follower.cancel()
        for connection in self._connections.values():
            connection.close()

    async def _one(self, among: Among | None) -> Connection:
        while True:
            if self._follower is None:
                self._follower = spawn_detached(self._follow())
            usable = [one for one in self._connections.values() if one.usable]
            if usable:
                usable = among(usable) if among else usable
                drawn = random.sample(usable, 2) if len(usable) > 2 else usable
                return min(drawn, key=lambda one: one.under_way)
            self._found.clear()
            self._missed.set()
            try:
                async with asyncio.timeout(_WAIT_S):
                    await self._found.wait()
            except TimeoutError:
                raise ReplicaLost(f"no replica of {self._name} can be reached") from None

    async def _follow(self) -> None:
        while True:
            self._missed.clear()
            try:
                await self._look()
            except Exception:  # the control side may be restarting; what is connected serves on
                logger.warning("could not look for replicas of %s", self._name, exc_info=True)
            try:
                async with asyncio.timeout(self._look_s):
                    await self._missed.wait()
                await asyncio.sleep(_LOOK_AGAIN_S)
            except TimeoutError:
                continue

    async def _look(self) -> None:
        wanted = {address.replica: address for address in await self._discover()}
        for replica, connection in list(self._connections.items()):
            if replica not in wanted:
                connection.leaving = True
            if not connection.open or (connection.leaving and not connection.under_way):
                connection.close()
                del self._connections[replica]
        for replica, address in wanted.items():
            if replica not in self._connections:
                try:
                    self._connections[replica] = await connect(address)
                except OSError as error:
                    logger.warning("cannot reach %s: %s", address, error)
        if any(one.usable for one in self._connections.values()):
            self._found.set()
