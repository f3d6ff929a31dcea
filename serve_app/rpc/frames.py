"""One end of a connection: framed messages, and one write for those of a turn of the event loop.

Owns framing and bounds of size; knows nothing of calls. What arrives is unpickled, so only an end
that has proved to be of the cluster may be listened to: see `serve_app.rpc.server`.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable
from typing import Any, cast

#: A message's length in bytes goes before it.
_LENGTH = struct.Struct("!I")
#: Far above what an envelope of the largest request takes.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

Receive = Callable[[tuple[Any, ...]], None]


class Frames(asyncio.Protocol):
    """Messages in and out. `receive` gets each message, `lost` is called once, at its end.

    A peer that does not read is not waited for: what is under way with it is bounded by the caller.
    """

    def __init__(self, receive: Receive, lost: Callable[[], None]) -> None:
        self._receive, self._lost = receive, lost
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._in = bytearray()

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: tuple[Any, ...]) -> None:
        """Send `message` with the others of this turn; nothing happens once the end has come.

        Raises:
            ValueError: it is larger than `MAX_MESSAGE_BYTES`.
            Exception: it cannot be pickled. Other messages are not touched by that.
        """
        body = pickle.dumps(message, protocol=5)
        if len(body) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(body)} bytes is too large to send")
        self.send_raw(_LENGTH.pack(len(body)) + body)

    def send_raw(self, data: bytes) -> None:
        """Send bytes that are no message."""
        self._out.append(data)
        if len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None:
            self._transport.write(b"".join(out))

    def close(self) -> None:
        """Send what is left, and end the connection."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports are no subclasses.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._lost()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._in += data
        start, end = 0, len(self._in)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in, start)
            if length > MAX_MESSAGE_BYTES:
                self.close()
                return
            if end - start < _LENGTH.size + length:
                break
            start += _LENGTH.size
            message = pickle.loads(memoryview(self._in)[start : start + length])  # noqa: S301
            start += length
            self._receive(message)
        del self._in[:start]
