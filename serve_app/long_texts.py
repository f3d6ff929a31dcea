"""Work on long texts, off the event loop: one thread, tenants in turn, and every piece has an end.

A text of the largest size takes a stage seconds, in which an event loop would serve no other. Such
work waits here instead, behind its own tenant's and for at most a share of everyone else's. Owns
the queue and the limit; what the work is, its stage knows.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cluster.governance.findings import OutOfTime, Tick
from cluster.records.trace import Refusal
from serve_app.tasks import spawn_detached

T = TypeVar("T")

#: Characters, and digits, that are worked on at once: at most some milliseconds.
_CHARS, _DIGITS = 8192, 96
#: Below it, all texts together, digits are not counted.
_FEW = 128
_DIGIT = re.compile(r"\d")
#: Pieces of one tenant that may wait: more than one call has answers at a time.
_WAITING = 256
_PATIENCE_S = 60.0


class Busy(Exception):
    """Too much of such work is waiting already."""


def is_long(texts: Iterable[str]) -> bool:
    """Whether `texts` are too much to be worked on at once."""
    total = digits = 0
    for text in texts:
        total += len(text)
        if total > _FEW:
            digits += len(_DIGIT.findall(text, 0, _CHARS))
        if total > _CHARS or digits > _DIGITS:
            return True
    return False


def refusal(error: OutOfTime | Busy) -> Refusal:
    """The refusal of a request whose text was not worked on."""
    if isinstance(error, Busy):
        return Refusal(429, "overloaded", "too many long texts are waiting; try again shortly")
    return Refusal(400, "text_too_complex", str(error), "messages")


@dataclass
class _Job:
    work: Callable[[Tick], Any]
    answer: asyncio.Future[Any]
    expires: float


class LongTexts:
    """One stage's long work. `limit_s` is the longest that one piece may take."""

    def __init__(self, limit_s: float, patience_s: float = _PATIENCE_S) -> None:
        self._limit_s, self._patience_s = limit_s, patience_s
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._working: asyncio.Task[None] | None = None

    async def run(self, tenant: str, work: Callable[[Tick], T]) -> T:
        """The result of `work`, which calls what it is given now and then.

        Raises:
            Busy: too much is waiting, or it waited for too long.
            OutOfTime: it took longer than it may.
        """
        mine = self._waiting.setdefault(tenant, deque())
        if len(mine) >= _WAITING:
            raise Busy
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future(), loop.time() + self._patience_s)
        mine.append(job)
        if self._working is None or self._working.done():
            self._working = spawn_detached(self._work())
        result: T = await job.answer
        return result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            tenant, mine = self._waiting.popitem(last=False)
            job = mine.popleft()
            if mine:
                self._waiting[tenant] = mine
            if job.answer.done():
                continue  # its client went away
            if loop.time() > job.expires:
                job.answer.set_exception(Busy())
                continue
            try:
                result = await asyncio.to_thread(self._timed, job.work)
            except Exception as error:  # goes to whom it belongs, as its stage would raise it
                if not job.answer.done():
                    job.answer.set_exception(error)
            else:
                if not job.answer.done():
                    job.answer.set_result(result)

    def _timed(self, work: Callable[[Tick], T]) -> T:
        # Of this thread: what others do meanwhile is not this text's fault.
        return work(partial(_tick, time.thread_time() + self._limit_s, self._limit_s))


def _tick(end: float, limit_s: float) -> None:
    if time.thread_time() > end:
        raise OutOfTime(f"the text takes over {limit_s:g} s to check: send less of it at a time")
