"""Tasks that serve several requests at once, and several tasks of one request."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar


def apart(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` outside the request that happened to start it.

    A client that goes away has everything cancelled that was called in its request's context, and
    a call that carries other requests too must not be among that.
    """
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


T = TypeVar("T")


async def in_turn(works: Sequence[Awaitable[T]], at_once: int = 32) -> list[T]:
    """What `works` give, in order, so many at a time: one call's hundreds of answers must not be
    all of what an event loop has to do next.

    Raises what the first of them does; those that have not begun are never begun.
    """
    room = asyncio.Semaphore(at_once)

    async def one(work: Awaitable[T]) -> T:
        try:
            await room.acquire()
        except asyncio.CancelledError:
            if isinstance(work, Coroutine):
                work.close()
            raise
        try:
            return await work
        finally:
            room.release()

    if len(works) <= at_once:
        return list(await asyncio.gather(*works))
    return list(await asyncio.gather(*(one(work) for work in works)))
