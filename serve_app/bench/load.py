"""A closed-loop load generator in a process of its own: `python -m serve_app.bench.load`.

Sends distinct chat prompts over kept-alive connections and prints one JSON object: counts, seconds,
and every latency in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

_TIMEOUT_S = 60.0
_SUBJECTS = ("rain boots", "winter coats", "garden hoses", "desk lamps", "running shoes")
_QUESTIONS = (
    "do we have {} in size {} at the store",
    "my order of {} number {} has not come",
    "can i return {} i bought with receipt {}",
    "how many points do i get for {} at {} dollars",
)


@dataclass
class Result:
    """One measurement."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def rps(self) -> float:
        """Good answers a second."""
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """A quantile of the latencies, in milliseconds."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def prompts(seed: int, *, distinct: bool) -> Iterator[str]:
    """Short customer turns; distinct ones differ in a number, the others repeat after forty."""
    number = seed * 1_000_000
    while True:
        number += 1
        shown = number if distinct else number % 40
        question = _QUESTIONS[shown % len(_QUESTIONS)]
        yield question.format(_SUBJECTS[shown % len(_SUBJECTS)], shown)


class _Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection with one request on it at a time.

    A load generator shares the machine with what it measures: this one costs a tenth of a
    millisecond a request, a general HTTP client three to six times that.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[str] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.lost = False

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


async def measure(
    url: str, key: str, model: str, *, concurrency: int, seconds: float, seed: int, distinct: bool
) -> Result:
    """Keep `concurrency` requests in flight for `seconds`; answers that end later do not count."""
    result = Result(seconds=seconds)
    feed = prompts(seed, distinct=distinct)
    target = urlsplit(url)
    assert target.hostname is not None
    host, port = target.hostname, target.port or 80
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
    loop = asyncio.get_running_loop()
    deadline = time.perf_counter() + seconds

    async def client() -> None:
        connection: _Connection | None = None
        while (begun := time.perf_counter()) < deadline:
            message = {"role": "user", "content": next(feed)}
            body = json.dumps({"model": model, "messages": [message]}).encode()
            try:
                if connection is None or connection.lost:
                    _, connection = await loop.create_connection(_Connection, host, port)
                async with asyncio.timeout(_TIMEOUT_S):
                    status = await connection.ask(head + b"%d\r\n\r\n" % len(body) + body)
            except (OSError, TimeoutError) as error:
                status, connection = type(error).__name__, None
            ended = time.perf_counter()
            if status != "200":
                result.errors[status] = result.errors.get(status, 0) + 1
            elif ended <= deadline:
                result.latencies_ms.append(round((ended - begun) * 1000, 3))
        if connection is not None:
            connection.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return result


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="serve_app.bench.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeated", action="store_true", help="prompts repeat after forty")
    options = parser.parse_args()
    result = uvloop.run(
        measure(
            options.url,
            sys.stdin.readline().strip(),  # a key on a command line is a key in `ps`
            options.model,
            concurrency=options.concurrency,
            seconds=options.seconds,
            seed=options.seed,
            distinct=not options.repeated,
        )
    )
    json.dump(asdict(result), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
