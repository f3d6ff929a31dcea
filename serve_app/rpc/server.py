"""A replica's side: named methods, served to clients that present the replica's secret.

The secret reaches a caller through Ray, which has checked that it is of the cluster; nothing a
peer sends is looked at before it has shown it. Owns which calls are under way and how they end.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from serve_app.rpc.frames import Frames

logger = logging.getLogger(__name__)
SECRET_BYTES = 32
_SHOW_SECRET_S = 10.0
#: After the farewell a caller may still have sent calls that it wrote before it read that.
_FAREWELL_S = 0.2

#: What an answer is: an item of a stream, the last word, an error, or the replica's farewell.
ITEM, RESULT, ERROR, FAREWELL = range(4)


@dataclass(frozen=True)
class Address:
    """Where a replica listens. The secret is for the caller alone and is not shown."""

    replica: str
    host: str
    port: int
    secret: bytes = field(repr=False)


class Server:
    """Serves `methods`: a coroutine function answers once, an async generator function streams."""

    def __init__(self, replica: str, methods: Mapping[str, Callable[..., Any]]) -> None:
        self._replica, self._methods = replica, dict(methods)
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._listening: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._peers: set[_Peer] = set()
        self._leaving = False

    async def address(self, host: str) -> Address:
        """Where to call; listens on `host` from the first time on."""
        async with self._starting:
            if self._listening is None:
                loop = asyncio.get_running_loop()
                self._listening = await loop.create_server(self._accept, host, 0)
        port = self._listening.sockets[0].getsockname()[1]
        return Address(self._replica, host, port, self._secret)

    @property
    def under_way(self) -> int:
        """Calls that have not ended."""
        return sum(len(peer.calls) for peer in self._peers)

    async def leave(self) -> None:
        """Say farewell, so that callers turn to other replicas, and see the last call out."""
        self._leaving = True
        for peer in self._peers:
            peer.send((0, FAREWELL, None))
        await asyncio.sleep(_FAREWELL_S)
        for call in [task for peer in self._peers for task in peer.calls.values()]:
            await asyncio.wait([call])
        if self._listening is not None:
            self._listening.close()
        for peer in list(self._peers):
            peer.close()

    def _accept(self) -> _Peer:
        return _Peer(self._methods, self._secret, self._peers, lambda: self._leaving)


class _Peer(Frames):
    """One caller."""

    def __init__(
        self,
        methods: Mapping[str, Callable[..., Any]],
        secret: bytes,
        peers: set[_Peer],
        leaving: Callable[[], bool],
    ) -> None:
        super().__init__(self._called, self._gone)
        self._methods, self._secret, self._peers = methods, secret, peers
        self._leaving = leaving
        self._shown: bytearray | None = bytearray()
        self._timer = self._loop.call_later(_SHOW_SECRET_S, self.close)
        self.calls: dict[int, asyncio.Task[None]] = {}

    def data_received(self, data: bytes) -> None:
        """The secret first; only then messages."""
        if self._shown is not None:
            self._shown += data
            if len(self._shown) < SECRET_BYTES:
                return
            shown, data = bytes(self._shown[:SECRET_BYTES]), bytes(self._shown[SECRET_BYTES:])
            self._shown = bytearray()
            if not hmac.compare_digest(shown, self._secret):
                logger.warning("refused a connection that does not know this replica's secret")
                self.close()
                return
            self._shown = None
            self._timer.cancel()
            self._peers.add(self)
            if self._leaving():
                self.send((0, FAREWELL, None))
        super().data_received(data)

    def _gone(self) -> None:
        self._timer.cancel()
        self._peers.discard(self)
        for task in self.calls.values():
            task.cancel()

    def _called(self, message: tuple[Any, ...]) -> None:
        number, method, arguments = message
        if method is None:
            if (task := self.calls.get(number)) is not None:
                task.cancel()
            return
        task = self._loop.create_task(self._answer(number, method, arguments))
        self.calls[number] = task
        task.add_done_callback(lambda _task: self.calls.pop(number, None))

    async def _answer(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            serve = self._methods[method]
            if inspect.isasyncgenfunction(serve):
                items: AsyncIterator[Any] = serve(*arguments)
                async with aclosing(items) as stream:  # type: ignore[type-var]
                    async for item in stream:
                        self.send((number, ITEM, item))
                self.send((number, RESULT, None))
            else:
                self.send((number, RESULT, await serve(*arguments)))
        except Exception as error:  # crosses as a value; the caller raises it as its own
            logger.exception("%s failed", method)
            self.send((number, ERROR, f"{type(error).__name__}: {error}"[:500]))
