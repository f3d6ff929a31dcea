"""The engine seen from the gateway: a Serve handle behind the engine protocol.

Requests that leave in the same instant share a call, so that a busy gateway pays for one hop and
not for a hundred; a request that leaves alone has a call of its own.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any

from serve_app.protocol import Delta, EngineFailed, EngineFault, Generation, GenerationRequest
from serve_app.tasks import apart

logger = logging.getLogger(__name__)
_LATE_S = 10.0
_Items = asyncio.Queue[Delta | Generation | EngineFault]


@dataclass(frozen=True)
class _Waiting:
    request: GenerationRequest
    answer: asyncio.Future[Generation]


class RemoteEngine:
    """Implements `serve_app.protocol.Engine` over a deployment handle."""

    def __init__(self, handle: Any, max_group: int) -> None:
        handle = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._handle = handle
        self._complete = handle.complete
        self._complete_many = handle.options(stream=True).complete_many
        self._stream = handle.options(stream=True).stream
        self._max_group = max_group
        self._name = uuid.uuid4().hex
        self._leaving: list[_Waiting] = []
        self._streams: dict[str, _Items] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.protocol.Engine.complete`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Generation] = loop.create_future()
        self._leaving.append(_Waiting(request, answer))
        if len(self._leaving) == 1:
            # After every request that is ready now has come this far.
            loop.call_soon(self._leave)
        return await answer

    def _leave(self) -> None:
        leaving = [item for item in self._leaving if not item.answer.done()]
        self._leaving = []
        for start in range(0, len(leaving), self._max_group):
            group = leaving[start : start + self._max_group]
            call = self._start(self._alone(*group) if len(group) == 1 else self._together(group))
            for item in group:
                self._watch(item, call, group)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = apart(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def _abort(self, request_id: str) -> None:
        # The handle does not say which replica has it; only that one knows the id.
        try:
            await self._handle.broadcast("abort", request_id).results_async()
        except Exception:  # its answer is discarded then; the request ends by its own length
            logger.exception("could not stop %s in the engine", request_id)

    def _watch(self, item: _Waiting, call: asyncio.Task[None], group: list[_Waiting]) -> None:
        def settled(answer: asyncio.Future[Generation]) -> None:
            if not answer.cancelled():
                return
            if all(other.answer.cancelled() for other in group):
                call.cancel()
            elif not call.done():
                self._start(self._abort(item.request.request_id))

        item.answer.add_done_callback(settled)

    async def _alone(self, item: _Waiting) -> None:
        try:
            _settle(item, await self._complete.remote(item.request))
        except Exception as error:  # goes to whoever waits, as if it had called itself
            _fail(item, error)

    async def _together(self, group: list[_Waiting]) -> None:
        try:
            async for answers in self._complete_many.remote([item.request for item in group]):
                for place, answer in answers:
                    _settle(group[place], answer)
        except Exception as error:  # as above, for each that still waits
            for item in group:
                _fail(item, error)
        for item in group:
            _fail(item, EngineFailed("the engine's replica gave no answer"))

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[Delta | Generation, None]:
        """See `serve_app.protocol.Engine.stream`."""
        items: _Items = asyncio.Queue()
        self._streams[request.request_id] = items
        self._start(self._carry(request, items))
        ended = False
        try:
            while not ended:
                item = await items.get()
                ended = not isinstance(item, Delta)
                if isinstance(item, EngineFault):
                    raise item.raised()
                yield item
        finally:
            if self._streams.get(request.request_id) is items:
                del self._streams[request.request_id]
            if not ended:
                self._start(self._abort(request.request_id))

    async def _carry(self, request: GenerationRequest, items: _Items) -> None:
        """Read one call to its end, whatever becomes of its request: it carries others' items."""
        try:
            async for parcel in self._stream.remote(request, self._name):
                for request_id, item in parcel:
                    if request_id in self._streams:
                        self._streams[request_id].put_nowait(item)
        except Exception:  # ends the stream it was called for, if that still waits
            logger.exception("the stream of %s broke", request.request_id)
        else:
            # The last items may have gone with another call that is still on its way.
            await asyncio.sleep(_LATE_S if self._streams.get(request.request_id) is items else 0)
        items.put_nowait(EngineFault("failed", "the engine's replica gave no answer"))


def _settle(item: _Waiting, answer: Generation | EngineFault) -> None:
    if item.answer.done():
        return
    if isinstance(answer, EngineFault):
        item.answer.set_exception(answer.raised())
    else:
        item.answer.set_result(answer)


def _fail(item: _Waiting, error: Exception) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)
