"""Admission: what would be over the gateway's bound is refused before anything of it is read.

Owns the refusal and when it tells a client to come back. A refusal has to cost next to nothing:
under overload there are more of them than answers.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.gateway.errors import error_body
from serve_app.pipeline.batcher import overloaded

_BODY = json.dumps(error_body(overloaded())).encode()
_BOUNDED = ("/chat/completions", "/completions", "/embeddings")
_LONGEST_S = 10.0


class Admission:
    """ASGI in front of the application; `full` is whether one more request would be too many."""

    def __init__(
        self, app: ASGIApp, full: Callable[[], bool], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._full = full
        self._now = now
        self._second = 0
        self._counts = (0, 0)
        self._before = (0, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass `scope` on, or refuse it with 429 and `Retry-After`."""
        bounded = scope["type"] == "http" and scope["path"].endswith(_BOUNDED)
        if not bounded or not self._full():
            self._count(admitted=1, refused=0)
            await self._app(scope, receive, send)
            return
        self._count(admitted=0, refused=1)
        admitted, refused = self._before
        wait_s = patience(admitted, refused, random.random())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(_BODY)),
            (b"retry-after", b"%d" % wait_s),
        ]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": _BODY})

    def _count(self, *, admitted: int, refused: int) -> None:
        second = int(self._now())
        if second != self._second:
            self._before = self._counts if second == self._second + 1 else (0, 0)
            self._second, self._counts = second, (0, 0)
        self._counts = (self._counts[0] + admitted, self._counts[1] + refused)


def patience(admitted: int, refused: int, draw: float) -> int:
    """Whole seconds after which a refused client should come back; `draw` is uniform in [0, 1).

    The more were refused for each that was admitted in the last second, the longer, so that
    refusals do not eat what answers need; spread out, so that those refused together do not all
    come back together.
    """
    wanted = 1.0 + 8.0 * refused / max(1, admitted)
    return math.ceil(min(_LONGEST_S, wanted) * (0.75 + 0.5 * draw))
