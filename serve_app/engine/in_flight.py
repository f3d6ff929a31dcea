"""Requests that share a call to an engine replica, and every request a replica has under way.

A call carries what left the gateway in the same instant; each answer goes back when it is ready,
whatever its neighbours still do. Knows neither Ray nor an engine library.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from serve_app.protocol import (
    AdapterGone,
    EngineFault,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
)

logger = logging.getLogger(__name__)

Answer = Generation | EngineFault


class InFlight:
    """What one replica works on. `complete` is the engine's own, for one request."""

    def __init__(self, complete: Callable[[GenerationRequest], Awaitable[Generation]]) -> None:
        self._complete = complete
        self._tasks: dict[str, asyncio.Task[Answer]] = {}
        self.under_way = 0
        """Requests in the engine now: what the deployment is scaled by."""

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one request for as long as it is under way."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def one(self, request: GenerationRequest) -> Answer:
        """The answer to one request. Expected faults are values: no traceback crosses for them."""
        with self.counted():
            try:
                return await self._complete(request)
            except (AdapterGone, PromptTooLong, NotSupported) as error:
                return EngineFault.of(error)

    async def many(
        self, requests: Sequence[GenerationRequest]
    ) -> AsyncIterator[list[tuple[int, Answer]]]:
        """Answers with their places in `requests`, as they become ready."""
        places = {self._start(request): place for place, request in enumerate(requests)}
        try:
            waiting = set(places)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                yield [(places[task], task.result()) for task in done if not task.cancelled()]
        finally:
            # Whoever asked has gone: nobody waits for the rest.
            for task in places:
                task.cancel()

    def abort(self, request_id: str) -> None:
        """Stop one request of a group; no answer follows. Unknown ids are somebody else's."""
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def _start(self, request: GenerationRequest) -> asyncio.Task[Answer]:
        task = asyncio.ensure_future(self._guarded(request))
        self._tasks[request.request_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.request_id, None))
        return task

    async def _guarded(self, request: GenerationRequest) -> Answer:
        try:
            return await self.one(request)
        except Exception:  # one request's fault must not fail those that share its call
            logger.exception("the engine failed on %s", request.request_id)
            return EngineFault("failed", "the engine failed on this request")
