"""HTTP connections and their bounds: who keeps one open without using it loses it.

Owns what is bounded before a request is one: time for headers, for a body and for reading an
answer, the size of headers, and connections by address. uvicorn bounds none of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LOOK_S = 1.0
#: What may come with the last byte of the headers: one read of the event loop's.
_READ = 1 << 18
_TOO_LONG = b"the headers are too long"


@dataclass(frozen=True)
class Bounds:
    """Times in seconds. A connection over a bound is closed."""

    head_s: float = 10.0
    """From the connection, or the begin of a request, to the end of its headers."""
    body_s: float = 30.0
    """From the end of the headers to the end of the body."""
    unread_s: float = 30.0
    """While an answer waits for its client, and that takes nothing of it."""
    head_bytes: int = 1 << 16
    """Of a request's address and headers."""
    per_address: int = 1024
    """Connections from one address to this process."""


class Phase:
    """What a connection is waited for, and since when by the monotonic clock."""

    HEAD, BODY, NONE = range(3)


def overdue(phase: int, since: float, unread: float | None, bounds: Bounds, now: float) -> bool:
    """Whether a connection in `phase` since then is over a bound; `unread` is since when its client
    takes nothing of an answer that waits, None where none does."""
    if unread is not None and now - unread > bounds.unread_s:
        return True
    limits = {Phase.HEAD: bounds.head_s, Phase.BODY: bounds.body_s}
    return phase in limits and now - since > limits[phase]


class Connections:
    """The connections of this process."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._open: set[BoundedProtocol] = set()
        self._of_address = Counter[str]()
        self._looking: asyncio.Task[None] | None = None

    def protocol(self, **given: Any) -> BoundedProtocol:
        """Called by uvicorn for each new connection."""
        return BoundedProtocol(self, **given)

    def add(self, one: BoundedProtocol, address: str) -> bool:
        """Take a connection on; whether its address may have one more."""
        self._open.add(one)
        self._of_address[address] += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
        return self._of_address[address] <= self.bounds.per_address

    def remove(self, one: BoundedProtocol, address: str) -> None:
        """Forget a connection that has ended."""
        if one in self._open:
            self._open.discard(one)
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    def close(self, now: float) -> None:
        """End every connection that is over a bound."""
        for one in list(self._open):
            if one.overdue(self.bounds, now):
                one.abort()

    async def _look(self) -> None:
        # One timer for all: thousands of connections have none of their own to set and cancel.
        while self._open:
            await asyncio.sleep(_LOOK_S)
            self.close(time.monotonic())


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which notes what it waits for."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all, self._most = connections, connections.bounds.head_bytes
        self._phase, self._since = Phase.HEAD, time.monotonic()
        self._head = self._raw = 0
        self._waiting = 0
        self._unread: float | None = None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if not self._all.add(self, self._address):
            self._refuse(b"429 Too Many Requests", b"too many connections from this address")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._all.remove(self, self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._phase == Phase.NONE and (self.cycle is None or self.cycle.response_complete):
            # Whatever it is, uvicorn stops its own clock for it: an empty line is no request yet.
            self._enter(Phase.HEAD)
            self._head = 0
        if self._phase == Phase.HEAD:
            # The parser tells of a header once it has ended, and keeps what comes until then.
            self._raw += len(data)
            if self._raw > self._most + _READ:
                self._refuse(b"431 Request Header Fields Too Large", _TOO_LONG)
                return
        super().data_received(data)

    def handle_websocket_upgrade(self) -> None:
        """Nothing here speaks WebSocket: the request is answered as any other."""

    def on_message_begin(self) -> None:
        """See `httptools`."""
        self._enter(Phase.HEAD)
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """See `httptools`."""
        if self._fits(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`."""
        if self._fits(len(name) + len(value)):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        if self.transport.is_closing():
            return
        self._enter(Phase.BODY)
        self._raw = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See `httptools`."""
        self._enter(Phase.NONE)
        if not self.transport.is_closing():
            super().on_message_complete()

    def overdue(self, bounds: Bounds, now: float) -> bool:
        """Whether it is over a bound."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting or waiting < self._waiting:
            self._unread = None
        if waiting and self._unread is None:
            self._unread = now
        self._waiting = waiting
        if self.flow.read_paused:
            # It waits for us: a request is behind another, or its body is being taken.
            self._since = now
        return overdue(self._phase, self._since, self._unread, bounds, now)

    def abort(self) -> None:
        """End it at once, without an answer: its client reads none."""
        self.transport.abort()

    def _enter(self, phase: int) -> None:
        self._phase, self._since = phase, time.monotonic()

    def _fits(self, size: int) -> bool:
        self._head += size
        if self._head <= self._most:
            return True
        if not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large", _TOO_LONG)
        return False

    def _refuse(self, status: bytes, why: bytes) -> None:
        body = b'{"error":{"message":"%s","type":"invalid_request_error","code":null}}' % why
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        self.transport.write(head % (status, len(body)) + b"connection: close\r\n\r\n" + body)
        self.transport.close()
