"""Streamed chats under load: `python -m serve_app.bench.streams`.

Keeps a number of streams open, each a chat with a prompt of its own, and prints one JSON object:
for each stream the time to its first token, the gaps between its frames, its tokens, and whether it
came to its end with every frame.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial

import uvloop

from serve_app.bench.http import Connection, head_of
from serve_app.bench.load import prompts

_TIMEOUT_S = 120.0
_SHOWN = 400
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_REASON = re.compile(rb'"finish_reason": ?"')
_CONTENT = re.compile(rb'"content": ?"[^"]')


@dataclass
class Stream:
    """One streamed answer; times in milliseconds."""

    status: str = ""
    first_ms: float = 0.0
    total_ms: float = 0.0
    tokens: int = 0
    gaps_ms: list[float] = field(default_factory=list)
    text: str = ""
    whole: bool = False
    """Opened, said why it finished, counted its tokens and closed."""
    problem: str = ""
    """The end of what came instead."""


class _Frames:
    """Reads a stream's frames as they arrive."""

    def __init__(self, begun: float) -> None:
        self.stream = Stream()
        self._begun = self._last = begun
        self._body = bytearray()

    def __call__(self, piece: bytes) -> None:
        now = time.perf_counter()
        self._body += piece
        if not _CONTENT.search(piece):
            return
        if self.stream.first_ms:
            self.stream.gaps_ms.append(round((now - self._last) * 1000, 3))
        else:
            self.stream.first_ms = round((now - self._begun) * 1000, 3)
        self._last = now

    def close(self, status: str) -> Stream:
        """The stream, once its answer has ended with `status`."""
        body = bytes(self._body)
        counted = _TOKENS.findall(body)
        self.stream.status = status
        self.stream.tokens = int(counted[-1]) if counted else 0
        self.stream.total_ms = round((time.perf_counter() - self._begun) * 1000, 3)
        reasons = len(_REASON.findall(body))
        self.stream.text = _text(body)
        ended = body.rstrip().endswith(b"data: [DONE]")
        self.stream.whole = status == "200" and ended and reasons == 1 and bool(counted)
        if not self.stream.whole:
            self.stream.problem = body[-_SHOWN:].decode(errors="replace")
        return self.stream


def _text(body: bytes) -> str:
    """What the frames of `body` say, put together."""
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in json.loads(event).get("choices", ())]
    return "".join(choice.get("delta", {}).get("content") or "" for choice in choices)


async def measure(
    url: str, key: str, model: str, *, concurrency: int, seconds: float, seed: int, max_tokens: int
) -> list[Stream]:
    """Keep `concurrency` streams open until `seconds` are over; those open then still finish.

    Each client has at least one stream, also where there is no time.
    """
    host, port, head = head_of(url, key)
    loop = asyncio.get_running_loop()
    deadline = time.perf_counter() + seconds
    feed, found = prompts(seed, distinct=True), list[Stream]()

    async def client() -> None:
        for number in itertools.count():
            begun = time.perf_counter()
            if number and begun >= deadline:
                return
            body = json.dumps(
                {
                    "model": model,
                    "messages": [{"role": "user", "content": next(feed)}],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    "max_tokens": max_tokens,
                    "temperature": 0,
                }
            ).encode()
            frames = _Frames(begun)
            connection: Connection | None = None
            try:
                _, connection = await loop.create_connection(
                    partial(Connection, frames), host, port
                )
                async with asyncio.timeout(_TIMEOUT_S):
                    status = await connection.ask(head + b"%d\r\n\r\n" % len(body) + body)
            except (OSError, TimeoutError) as error:
                status = type(error).__name__
            finally:
                if connection is not None:
                    connection.close()
            found.append(frames.close(status))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return found


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="serve_app.bench.streams", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="0: one stream for each client")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    began = time.perf_counter()
    found = uvloop.run(
        measure(
            options.url,
            sys.stdin.readline().strip(),  # a key on a command line is a key in `ps`
            options.model,
            concurrency=options.concurrency,
            seconds=options.seconds,
            seed=options.seed,
            max_tokens=options.max_tokens,
        )
    )
    seconds = time.perf_counter() - began
    json.dump({"seconds": seconds, "streams": [asdict(stream) for stream in found]}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
