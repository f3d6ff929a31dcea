"""The few routes that carry the traffic, called straight.

Knows nothing of what they do. An application's router and middleware, made for dozens of routes,
cost a gateway a tenth of what an answer from the cache does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.gateway.errors import Handlers, answer

Handler = Callable[[Request], Awaitable[Response]]


class FastPath:
    """ASGI in front of `app`: a POST to a path of `handlers` goes to its handler, the rest on."""

    def __init__(self, app: ASGIApp, handlers: Mapping[str, Handler], errors: Handlers) -> None:
        self._app = app
        self._handlers = handlers
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request of `scope`."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        handler = self._handlers.get(scope["path"])
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Exception as error:  # as the application's own middleware answers them
            response = await answer(request, error, self._errors)
        await response(scope, receive, send)
