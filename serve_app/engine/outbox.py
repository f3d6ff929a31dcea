"""What a replica streams back to one gateway, gathered from all of that gateway's requests.

An engine step writes a token for each request it works on. Sent one by one they cost more than the
step; here whichever open call is free carries what all of them have by then. Knows no Ray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from serve_app.protocol import Delta, EngineFault, Generation

Item = Delta | Generation | EngineFault
Parcel = list[tuple[str, Item]]


class Outbox:
    """Items by request id, and the open calls that may carry them."""

    def __init__(self) -> None:
        self._items: Parcel = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.calls = 0

    def put(self, request_id: str, item: Item) -> None:
        """Have `item` sent with whatever else is ready in this instant."""
        self._items.append((request_id, item))
        if len(self._items) == 1:
            asyncio.get_running_loop().call_soon(self._wake_one)

    def _wake_one(self) -> None:
        while self._items and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def carry(self, own: asyncio.Task[None]) -> AsyncIterator[Parcel]:
        """What one call sends, until its `own` request is done and nothing is left to send."""
        self.calls += 1
        sent = False
        try:
            while True:
                if self._items:
                    parcel, self._items = self._items, []
                    sent = True
                    yield parcel
                elif own.done():
                    if not sent:
                        # gRPC may lose the headers of a stream without a message, and Ray Serve
                        # then takes the call for a broken one.
                        yield []
                    return
                else:
                    await self._wait(own)
        finally:
            self.calls -= 1

    async def _wait(self, own: asyncio.Task[None]) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)

        def over(_task: asyncio.Task[None]) -> None:
            if not waiter.done():
                waiter.set_result(None)

        own.add_done_callback(over)
        try:
            await waiter
        finally:
            own.remove_done_callback(over)
            waiter.cancel()  # a call that is cut off is not to be woken
