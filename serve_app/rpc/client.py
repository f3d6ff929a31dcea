"""A gateway's side: calls and streams over one open connection to a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from serve_app.rpc.frames import Frames
from serve_app.rpc.server import ERROR, FAREWELL, ITEM, RESULT, Address

_CONNECT_S = 5.0
OnItem = Callable[[Any], None]


def _ignore(_item: Any) -> None:
    """The callback of a caller that needs none."""


class ReplicaLost(ConnectionError):
    """The replica went away with the call under way, or there is none to call."""


class CallFailed(RuntimeError):
    """The replica's method raised; its own log has the traceback."""


class Connection(Frames):
    """Calls to one replica. Made by `connect`."""

    def __init__(self, address: Address) -> None:
        super().__init__(self._answered, self._gone)
        self.address = address
        self.leaving = False
        """The replica takes no more calls, but sees out those under way."""
        self._last = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, tuple[asyncio.Queue[tuple[int, Any]], OnItem]] = {}

    @property
    def usable(self) -> bool:
        """Whether a new call may go here."""
        return self.open and not self.leaving

    @property
    def under_way(self) -> int:
        """Calls that wait for their end."""
        return len(self._waiting) + len(self._streams)

    async def call(self, method: str, *arguments: Any) -> Any:
        """The method's result; a caller that is cancelled has the call cancelled.

        Raises:
            ReplicaLost: the connection broke before the result came.
            CallFailed: the method raised.
        """
        number = self._number()
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send((number, method, arguments))
        self._waiting[number] = future
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        finally:
            del self._waiting[number]

    async def stream(
        self, method: str, *arguments: Any, on_item: OnItem | None = None
    ) -> AsyncGenerator[Any, None]:
        """The method's items as they come; errors as in `call`. Closing it cancels the call.

        `on_item` is called with each item when it comes, however far behind the caller is.
        """
        number = self._number()
        items: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self.send((number, method, arguments))
        self._streams[number] = items, on_item or _ignore
        kind = ITEM
        try:
            while True:
                kind, value = await items.get()
                if kind == ERROR:
                    raise value
                if kind == RESULT:
                    return
                yield value
        finally:
            del self._streams[number]
            if kind == ITEM:
                self._cancel(number)

    def _number(self) -> int:
        if not self.open:
            raise ReplicaLost(f"replica {self.address.replica} is gone")
        self._last += 1
        return self._last

    def _cancel(self, number: int) -> None:
        if self.open:
            self.send((number, None, ()))

    def _answered(self, message: tuple[Any, ...]) -> None:
        number, kind, value = message
        if kind == FAREWELL:
            self.leaving = True
            return
        if kind == ERROR:
            value = CallFailed(value)
        if (stream := self._streams.get(number)) is not None:
            items, on_item = stream
            if kind == ITEM:
                on_item(value)
            items.put_nowait((kind, value))
        elif (future := self._waiting.get(number)) is not None and not future.done():
            if kind == ERROR:
                future.set_exception(value)
            else:
                future.set_result(value)

    def _gone(self) -> None:
        error = ReplicaLost(f"replica {self.address.replica} went away")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        for items, _ in self._streams.values():
            items.put_nowait((ERROR, error))


async def connect(address: Address) -> Connection:
    """A connection that may call at once.

    Raises:
        OSError: the connection was refused, or not made within five seconds.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
        _, connection = await loop.create_connection(
            lambda: Connection(address), address.host, address.port
        )
    connection.send_raw(address.secret)
    return connection
