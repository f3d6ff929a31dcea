"""Requests that share a call to an engine replica, and every request a replica has under way.

A call carries what left the gateway in the same instant; each answer goes back when it is ready,
whatever its neighbours still do. Knows neither Ray nor an engine library.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from serve_app.engine.outbox import Outbox, Parcel
from serve_app.protocol import (
    AdapterGone,
    Delta,
    EngineFault,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
)

logger = logging.getLogger(__name__)
_REMEMBERED = 256

Answer = Generation | EngineFault


class InFlight:
    """What one replica works on. `complete` and `stream` are the engine's own, for one request."""

    def __init__(
        self,
        complete: Callable[[GenerationRequest], Awaitable[Generation]],
        stream: Callable[[GenerationRequest], AsyncIterator[Delta | Generation]],
    ) -> None:
        self._complete, self._stream = complete, stream
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._boxes: dict[str, Outbox] = {}
        # A request can be given up before it has arrived.
        self._given_up: deque[str] = deque(maxlen=_REMEMBERED)
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

    async def stream(self, request: GenerationRequest, caller: str) -> AsyncIterator[Parcel]:
        """Items of this request, and of others of the same `caller`, by request id.

        The call is over when its own request is; items it did not carry went with another.
        """
        box = self._boxes.setdefault(caller, Outbox())
        task = asyncio.ensure_future(self._feed(request, box))
        self._remember(request.request_id, task)
        try:
            async for parcel in box.carry(task):
                yield parcel
        finally:
            task.cancel()
            if not box.calls:
                self._boxes.pop(caller, None)

    async def _feed(self, request: GenerationRequest, box: Outbox) -> None:
        with self.counted():
            try:
                async with aclosing(self._stream(request)) as items:  # type: ignore[type-var]
                    async for item in items:
                        box.put(request.request_id, item)
            except (AdapterGone, PromptTooLong, NotSupported) as error:
                box.put(request.request_id, EngineFault.of(error))
            except Exception:  # goes back as a value: the call carries other requests too
                box.put(request.request_id, _failed(request))

    def abort(self, request_id: str) -> None:
        """Stop one request; no answer follows. Unknown ids are another replica's."""
        self._given_up.append(request_id)
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()

    def _start(self, request: GenerationRequest) -> asyncio.Task[Answer]:
        task = asyncio.ensure_future(self._guarded(request))
        self._remember(request.request_id, task)
        return task

    def _remember(self, request_id: str, task: asyncio.Task[Any]) -> None:
        def forget(done: asyncio.Task[Any]) -> None:
            if self._tasks.get(request_id) is done:
                del self._tasks[request_id]

        self._tasks[request_id] = task
        task.add_done_callback(forget)
        if request_id in self._given_up:
            task.cancel()

    async def _guarded(self, request: GenerationRequest) -> Answer:
        try:
            return await self.one(request)
        except Exception:  # one request's fault must not fail those that share its call
            return _failed(request)


def _failed(request: GenerationRequest) -> EngineFault:
    logger.exception("the engine failed on %s", request.request_id)
    return EngineFault("failed", "the engine failed on this request")
