"""Tasks that serve several requests at once, and several tasks of one request."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar


def spawn_detached(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` outside the request that happened to start it.

    A client that goes away has everything cancelled that was called in its request's context, and
    a call that carries other requests too must not be among that.
    """
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


T = TypeVar("T")


#: Answers of one call that are worked on side by side.
AT_ONCE = 32


async def in_turn(works: Sequence[Awaitable[T]], at_once: int = AT_ONCE) -> list[T]:
    """What `works` give, in order, so many at a time: one call's hundreds of answers must not be
    all of what an event loop has to do next.

    Raises what the first of them does; the others are cancelled, and waited for.
    """
    room = asyncio.Semaphore(at_once)

    async def one(work: Awaitable[T]) -> T:
        async with room:
            return await work

    tasks = [asyncio.ensure_future(one(work)) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for work in works:
            if isinstance(work, Coroutine):
                work.close()  # of those that had not begun
        raise
