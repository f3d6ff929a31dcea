"""Connections that are kept open without being used, on a real server and real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from serve_app.gateway import connections
from serve_app.gateway.connections import Bounds, Connections, Phase, overdue
from serve_app.gateway.rates import Rates
from tests.waiting import until

BOUNDS = Bounds(head_s=0.3, body_s=0.3, unread_s=0.4, head_bytes=4096, per_address=5)


async def _echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def _endless(_request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)  # as the engine is waited for

    return StreamingResponse(pieces())


class Edge:
    """A server with short bounds."""

    def __init__(self, port: int, kept: Connections) -> None:
        self.port, self.kept = port, kept

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def said(self, *pieces: bytes, pause_s: float = 0.0) -> bytes:
        """What comes back for `pieces` until the server closes."""
        reader, writer = await self.open()
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause_s)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def edge(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    monkeypatch.setattr(connections, "_LOOK_S", 0.05)
    app = Starlette(
        routes=[Route("/", _echo, methods=["GET", "POST"]), Route("/endless", _endless)]
    )
    kept = Connections(BOUNDS)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=kept.protocol,  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        ws="none",
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    await until(lambda: server.started)
    yield Edge(sock.getsockname()[1], kept)
    server.should_exit = server.force_exit = True
    await asyncio.wait_for(serving, 10)


GET = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n"


async def test_requests_are_answered_one_after_another_on_one_connection(edge: Edge) -> None:
    reader, writer = await edge.open()
    for number in range(3):
        writer.write(POST % 5 + b"hello" if number else GET)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readexactly(1)
        # Longer than any bound: between requests a connection may rest.
        await asyncio.sleep(0.4)
    writer.close()


async def test_a_connection_that_says_nothing_is_closed(edge: Edge) -> None:
    assert await edge.said() == b""


async def test_headers_that_trickle_in_are_not_waited_for(edge: Edge) -> None:
    slow = [b"GET / HTTP/1.1\r\n", *(b"x-%d: y\r\n" % number for number in range(20))]
    assert await edge.said(*slow, pause_s=0.05) == b""


async def test_a_body_that_trickles_in_is_not_waited_for(edge: Edge) -> None:
    assert await edge.said(POST % 100, *[b"x"] * 20, pause_s=0.05) == b""


async def test_an_unread_answer_is_not_kept(edge: Edge) -> None:
    _reader, writer = await edge.open()
    writer.write(b"GET /endless HTTP/1.1\r\nhost: t\r\n\r\n")
    await asyncio.sleep(0.1)
    assert len(edge.kept._open) == 1
    await until(lambda: not edge.kept._open)
    writer.close()


async def test_an_answer_that_is_read_is_not_cut(edge: Edge) -> None:
    reader, writer = await edge.open()
    writer.write(b"GET /endless HTTP/1.1\r\nhost: t\r\n\r\n")
    for _ in range(20):
        assert await asyncio.wait_for(reader.read(1 << 20), 5)
        await asyncio.sleep(0.05)
    writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000 + b"\r\n",
    ],
)
async def test_headers_are_bounded(edge: Edge, head: bytes) -> None:
    assert (await edge.said(head)).startswith(b"HTTP/1.1 431 ")


async def test_an_address_has_so_many_connections(edge: Edge) -> None:
    held = [await edge.open() for _ in range(5)]
    assert (await edge.said(GET)).startswith(b"HTTP/1.1 429 ")
    held.pop()[1].close()
    await asyncio.sleep(0.1)
    reader, writer = await edge.open()
    writer.write(GET)
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
    for _, other in [*held, (reader, writer)]:
        other.close()


@pytest.mark.parametrize(
    ("phase", "since", "unread", "expected"),
    [
        (Phase.HEAD, 0.0, None, True),
        (Phase.HEAD, 9.8, None, False),
        (Phase.BODY, 0.0, None, True),
        (Phase.NONE, 0.0, None, False),
        (Phase.NONE, 0.0, 9.9, False),
        (Phase.NONE, 0.0, 9.0, True),
    ],
)
def test_what_is_overdue(phase: int, since: float, unread: float | None, expected: bool) -> None:
    assert overdue(phase, since, unread, BOUNDS, 10.0) is expected


def test_a_key_asks_so_often_and_others_as_often() -> None:
    rates = Rates(60)
    assert [rates.take("a", 0.0) for _ in range(60)] == [None] * 60
    assert rates.take("a", 0.0) == pytest.approx(1.0)
    assert rates.take("b", 0.0) is None
    assert rates.take("a", 0.5) == pytest.approx(0.5)
    assert rates.take("a", 1.0) is None
    assert rates.take("a", 1.0) is not None
    for number in range(5000):
        rates.take(f"k{number}", 2.0)
    assert len(rates._left) == 4096


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nx: " + b"a" * 1000,
        b"GET /" + b"a" * 1000,
    ],
)
async def test_a_header_that_never_ends_is_refused(edge: Edge, start: bytes) -> None:
    """The parser tells of it at its end only."""
    reader, writer = await edge.open()
    writer.write(start)
    with suppress(ConnectionError):
        for _ in range(1000):
            writer.write(b"a" * 65536)
            await writer.drain()
        # What was refused while more came is reset, and the answer may be lost with it.
    with suppress(ConnectionError):
        assert (await asyncio.wait_for(reader.read(), 10))[:13] in (b"", b"HTTP/1.1 431 ")
    await until(lambda: not edge.kept._open)
    writer.close()


async def test_an_empty_line_keeps_no_connection_open(edge: Edge) -> None:
    reader, writer = await edge.open()
    writer.write(GET)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n0"), 5)
    writer.write(b"\r\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_an_upgrade_leaves_no_count_behind(edge: Edge) -> None:
    upgrade = (
        b"GET / HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    for _ in range(8):
        reader, writer = await edge.open()
        writer.write(upgrade)
        await asyncio.wait_for(reader.read(64), 5)
        writer.close()
        await writer.wait_closed()
    await until(lambda: not edge.kept._open)
    assert edge.kept._of_address == {}
