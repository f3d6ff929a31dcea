"""A lean HTTP/1.1 client for the load generators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools


def head_of(url: str, key: str) -> tuple[str, int, bytes]:
    """Host, port, and the head of a JSON request to `url` up to the number of its body's bytes."""
    target = urlsplit(url)
    assert target.hostname is not None
    host, port = target.hostname, target.port or 80
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    return host, port, head.encode()


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection with one request on it at a time.

    A load generator shares the machine with what it measures: this one costs a tenth of a
    millisecond a request, a general HTTP client three to six times that.
    """

    def __init__(self, on_body: Callable[[bytes], None] | None = None) -> None:
        self._on_body = on_body
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[str] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.lost = False
        self.retry_after_s = 0
        """What the last refusal asked for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour, not by class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._settle(type(error).__name__)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._settle(type(exc).__name__ if exc else "Disconnected")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with each header."""
        if name.lower() == b"retry-after" and value.isdigit():
            self.retry_after_s = int(value)

    def on_body(self, body: bytes) -> None:
        """Called by the parser with each piece of a body."""
        if self._on_body is not None:
            self._on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a body, whether of a known length or chunked."""
        status = str(self._parser.get_status_code())
        if not self._parser.should_keep_alive():
            self.close()
        self._parser = httptools.HttpResponseParser(self)
        self._settle(status)

    def _settle(self, status: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    async def ask(self, request: bytes) -> str:
        """The status of the answer to `request`, once it is there whole; or what went wrong."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        self.lost = True
        if self._transport is not None:
            self._transport.close()
