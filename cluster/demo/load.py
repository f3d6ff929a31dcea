"""The load generator: replays turns against the gateway and keeps what came back of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from cluster.progress import Bar
from cluster.workload import TurnRecord

_TIMEOUT_S = 120.0


@dataclass
class Shot:
    """One request to send."""

    turn: TurnRecord
    model: str = "auto"
    stream: bool = False


@dataclass
class Outcome:
    """What came of one request; times on the monotonic clock."""

    shot: Shot
    started: float
    first_token: float
    ended: float
    model: str = ""
    text: str = ""
    error: str = ""
    audit_ms: float | None = None
    """The audit stage's time as the answer's `Server-Timing` header gave it."""

    @property
    def failed(self) -> bool:
        """Whether the client got no complete answer."""
        return bool(self.error)


@dataclass
class Tally:
    """Outcomes of a whole run."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        """Those without a complete answer."""
        return [outcome for outcome in self.outcomes if outcome.failed]


class LoadGenerator:
    """Sends shots over one connection pool and adds every outcome to `tally`."""

    def __init__(self, base_url: str, key: str, tally: Tally) -> None:
        self._url = f"{base_url}/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._tally = tally
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> LoadGenerator:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=512),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def send(self, shot: Shot) -> Outcome:
        """Send one request; a failure is an outcome, not an exception."""
        started = time.monotonic()
        outcome = Outcome(shot, started, started, started)
        body = {
            "model": shot.model,
            "messages": [{"role": "user", "content": shot.turn.text}],
            "metadata": {"turn_id": shot.turn.id},
            "stream": shot.stream,
        }
        assert self._session is not None
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    outcome.error = f"HTTP {response.status}: {(await response.text())[:300]}"
                elif shot.stream:
                    await _read_stream(response, outcome)
                else:
                    answer = await response.json()
                    outcome.audit_ms = _audit_ms(response.headers.get("Server-Timing", ""))
                    outcome.first_token = time.monotonic()
                    outcome.model = str(answer["model"])
                    outcome.text = str(answer["choices"][0]["message"]["content"])
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.ended = time.monotonic()
        self._tally.outcomes.append(outcome)
        return outcome

    async def replay(self, shots: Iterable[Shot], concurrency: int, bar: Bar) -> list[Outcome]:
        """Send all shots, `concurrency` at a time."""
        waiting = iter(shots)
        results: list[Outcome] = []

        async def worker() -> None:
            for shot in waiting:
                results.append(await self.send(shot))
                bar.advance()

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return results

    @asynccontextmanager
    async def background(self, shots: list[Shot], rate: float) -> AsyncIterator[list[Outcome]]:
        """Keep about `rate` requests a second flowing while the body runs."""
        results: list[Outcome] = []
        done = asyncio.Event()

        async def flow() -> None:
            number = 0
            while not done.is_set():
                results.append(await self.send(shots[number % len(shots)]))
                number += 1
                try:
                    await asyncio.wait_for(done.wait(), 1.0 / rate)
                except TimeoutError:
                    continue

        task = asyncio.create_task(flow())
        try:
            yield results
        finally:
            done.set()
            await task


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    finished = False
    async for line in response.content:
        data = line.strip().removeprefix(b"data: ")
        if not data:
            continue
        if data == b"[DONE]":
            finished = True
            break
        body = json.loads(data)
        if "error" in body:
            outcome.error = str(body["error"]["message"])
            return
        for choice in body["choices"]:
            text = choice["delta"].get("content") or ""
            if text and not outcome.text:
                outcome.first_token = time.monotonic()
            outcome.text += text
            if choice["finish_reason"]:
                outcome.model = str(body["model"])
    if not finished:
        outcome.error = "the stream ended without [DONE]"


def _audit_ms(timing: str) -> float | None:
    for entry in timing.split(", "):
        name, _, duration = entry.partition(";dur=")
        if name == "audit":
            return float(duration)
    return None
