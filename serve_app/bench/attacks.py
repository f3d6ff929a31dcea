"""A hostile client in a process of its own: `python -m serve_app.bench.attacks --kind KIND`.

Each kind is a request at its worst allowed size, or a connection that is not used, sent over and
over from several connections at once. What comes back is counted by status and otherwise ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import uvloop

from serve_app.bench.http import Connection, head_of

#: Just below what fits the window of the served model: see `serve_app.prompt_length`.
_CHARS = 7000
_BODY = 1 << 20
_TIMEOUT_S = 30.0


def _repeated(text: str, size: int = _CHARS) -> str:
    return (text * (size // len(text) + 1))[:size]


def _chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


def _addresses(count: int) -> str:
    return " ".join(f"10.{number // 250}.{number % 250}.7" for number in range(count))


def _schema(pattern: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    wanted = {"name": "x", "schema": {**schema, "required": ["a"], "additionalProperties": False}}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}, "max_tokens": 8}


def _tools() -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(60)}}
    return [
        {"type": "function", "function": {"name": f"f{n}", "parameters": parameters}}
        for n in range(6)
    ]


#: Path below `/v1/` and body by kind of attack.
BODIES: dict[str, Callable[[], tuple[str, Any]]] = {
    "combining marks": lambda: ("chat/completions", _chat(_repeated("a\u0301\u0327"))),
    "marks beyond the window": lambda: (
        "chat/completions",
        _chat("a" + "\u0301" * 60_000 + "\u0327" * 60_000),
    ),
    "groups of digits": lambda: ("chat/completions", _chat(_repeated("١٢٣٤ ٥٦٧٨ ٩٠١٢\n"))),
    "addresses to mask": lambda: ("chat/completions", _chat(_addresses(500))),
    "emoji": lambda: ("chat/completions", _chat(_repeated("👩‍👩‍👧‍👦1"))),
    "choices": lambda: (
        "completions",
        {"model": "auto", "prompt": ["tell me more"] * 32, "n": 8, "max_tokens": 32},
    ),
    "one prompt a choice": lambda: ("chat/completions", _chat("tell me more", n=8)),
    "embeddings": lambda: (
        "embeddings",
        {"model": "all-minilm-l6-v2", "input": [_repeated("boots in size 9 ", 4000)] * 250},
    ),
    "a pattern": lambda: ("chat/completions", _chat("a", **_schema("^([a-z]{1,20}[0-9]){1,40}$"))),
    "many tools": lambda: ("chat/completions", _chat("a", tools=_tools())),
    "tool calls": lambda: (
        "chat/completions",
        {
            "model": "auto",
            "messages": [
                {"role": "user", "content": "go on"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": f"c{n}",
                            "type": "function",
                            "function": {
                                "name": "f",
                                "arguments": json.dumps({"a": [_addresses(3)] * 3}),
                            },
                        }
                        for n in range(32)
                    ],
                },
                *({"role": "tool", "tool_call_id": f"c{n}", "content": "1"} for n in range(32)),
            ],
        },
    ),
    "metadata": lambda: (
        "chat/completions",
        _chat("a", metadata={f"k{n}": _repeated("1234 5678 ", 512) for n in range(16)}),
    ),
    "nested JSON": lambda: ("chat/completions", "[" * 500_000),
    "a body of nonsense": lambda: ("chat/completions", _chat(_repeated("x", _BODY - 200))),
    "refused names": lambda: ("chat/completions", {**_chat("a"), "model": "of-another"}),
}


def _raw(url: str, key: str, path: str, body: bytes, extra: bytes = b"") -> bytes:
    target = url.replace("/chat/completions", f"/{path}")
    _, _, head = head_of(target, key)
    return head + b"%d\r\n" % len(body) + extra + b"\r\n" + body


def _get(url: str, key: str, path: str) -> bytes:
    target = urlsplit(url)
    head = f"GET {path} HTTP/1.1\r\nHost: {target.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n"
    return head.encode()


class Attack:
    """One hostile client and what it got back."""

    def __init__(self, url: str, key: str, deadline: float) -> None:
        self._url, self._key, self._deadline = url, key, deadline
        target = urlsplit(url)
        self._where = (target.hostname or "", target.port or 80)
        self.seen = Counter[str]()

    @property
    def _going(self) -> bool:
        return time.perf_counter() < self._deadline

    async def ask(self, make: Callable[[], bytes]) -> None:
        """Send one request after another."""
        loop, connection = asyncio.get_running_loop(), None
        while self._going:
            try:
                if connection is None or connection.lost:
                    _, connection = await loop.create_connection(Connection, *self._where)
                async with asyncio.timeout(_TIMEOUT_S):
                    self.seen[await connection.ask(make())] += 1
            except (OSError, TimeoutError) as error:
                self.seen[type(error).__name__] += 1
                connection = None
                await asyncio.sleep(0.05)
        if connection is not None:
            connection.close()

    async def hold(self, first: bytes, more: bytes = b"") -> None:
        """Open connections that send `first`, trickle `more`, and read nothing."""
        while self._going:
            try:
                reader, writer = await asyncio.open_connection(*self._where, limit=1)
                writer.write(first)
                while self._going and not writer.is_closing() and not reader.at_eof():
                    writer.write(more)
                    await asyncio.sleep(0.5)
                writer.close()
                self.seen["held"] += 1
            except OSError as error:
                self.seen[type(error).__name__] += 1
                await asyncio.sleep(0.2)

    def clients(self, kind: str, count: int) -> list[Coroutine[Any, Any, None]]:
        """What `count` hostile clients do at once, or many more where they only hold on."""
        if kind in BODIES:
            path, body = BODIES[kind]()
            text = body if isinstance(body, str) else json.dumps(body)
            request = _raw(self._url, self._key, path, text.encode())
            return [self.ask(lambda: request) for _ in range(count)]
        chat = json.dumps(_chat("hello", stream=True, n=8, max_tokens=96)).encode()
        rare: dict[str, Callable[[], list[Coroutine[Any, Any, None]]]] = {
            "a bomb of gzip": lambda: [self.ask(self._bomb) for _ in range(count)],
            "keys that are none": lambda: [self.ask(self._stranger) for _ in range(count)],
            "lists and bills": lambda: [self.ask(self._listing) for _ in range(count)],
            "idle connections": lambda: [self.hold(b"") for _ in range(800)],
            "slow headers": lambda: [
                self.hold(b"POST / HTTP/1.1\r\n", b"a: b\r\n") for _ in range(300)
            ],
            "slow bodies": lambda: [
                self.hold(_raw(self._url, self._key, "chat/completions", b"x" * 999)[:-900], b"x")
                for _ in range(300)
            ],
            "unread streams": lambda: [
                self.hold(_raw(self._url, self._key, "chat/completions", chat)) for _ in range(64)
            ],
        }
        return rare[kind]()

    def _bomb(self) -> bytes:
        body = zlib.compress(b"0" * (50 << 20), 9)
        return _raw(
            self._url, self._key, "chat/completions", body, b"content-encoding: deflate\r\n"
        )

    def _stranger(self) -> bytes:
        body = json.dumps(_chat("a")).encode()
        return _raw(self._url, f"hr-{random.getrandbits(128):032x}", "chat/completions", body)

    def _listing(self) -> bytes:
        paths = ("/v1/models", "/key/info", "/v1/models/none", "/v1/usage", "/v1/labels", "/health")
        return _get(self._url, self._key, random.choice(paths))


KINDS = (
    *BODIES,
    "a bomb of gzip",
    "keys that are none",
    "lists and bills",
    "idle connections",
    "slow headers",
    "slow bodies",
    "unread streams",
)


async def attack(url: str, key: str, kind: str, clients: int, seconds: float) -> Counter[str]:
    """Attack for `seconds`; what came back, by status."""
    found = Attack(url, key, time.perf_counter() + seconds)
    tasks = [asyncio.ensure_future(one) for one in found.clients(kind, clients)]
    await asyncio.wait(tasks, timeout=seconds + 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found.seen


def main() -> int:
    """Parse, attack, print."""
    parser = argparse.ArgumentParser(prog="serve_app.bench.attacks", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    key = sys.stdin.readline().strip()  # a key on a command line is a key in `ps`
    wanted = attack(options.url, key, options.kind, options.clients, options.seconds)
    json.dump(dict(uvloop.run(wanted)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
