"""A closed-loop load generator in a process of its own: `python -m serve_app.bench.load`.

Sends distinct chat prompts over kept-alive connections and prints one JSON object: counts, seconds,
and every latency in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import uvloop

from serve_app.bench.http import Connection, head_of

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
    by_second: list[int] = field(default_factory=list)
    """Good answers in each second."""

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


async def measure(
    url: str,
    key: str,
    model: str,
    *,
    concurrency: int,
    seconds: float,
    seed: int,
    distinct: bool,
    patient: bool = False,
) -> Result:
    """Keep `concurrency` requests in flight for `seconds`; answers that end later do not count.

    A `patient` client obeys `Retry-After`.
    """
    result = Result(seconds=seconds, by_second=[0] * math.ceil(seconds))
    feed = prompts(seed, distinct=distinct)
    host, port, head = head_of(url, key)
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    deadline = started + seconds

    async def client() -> None:
        connection: Connection | None = None
        while (begun := time.perf_counter()) < deadline:
            message = {"role": "user", "content": next(feed)}
            body = json.dumps({"model": model, "messages": [message]}).encode()
            try:
                if connection is None or connection.lost:
                    _, connection = await loop.create_connection(Connection, host, port)
                async with asyncio.timeout(_TIMEOUT_S):
                    status = await connection.ask(head + b"%d\r\n\r\n" % len(body) + body)
            except (OSError, TimeoutError) as error:
                status, connection = type(error).__name__, None
            ended = time.perf_counter()
            if status != "200":
                result.errors[status] = result.errors.get(status, 0) + 1
                if patient and status == "429" and connection is not None:
                    await asyncio.sleep(min(connection.retry_after_s, deadline - ended))
            elif ended <= deadline:
                result.latencies_ms.append(round((ended - begun) * 1000, 3))
                result.by_second[int(ended - started)] += 1
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
    parser.add_argument("--patient", action="store_true", help="obey Retry-After")
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
            patient=options.patient,
        )
    )
    json.dump(asdict(result), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
