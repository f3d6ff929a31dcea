"""Domain errors to OpenAI-shaped HTTP errors: the one place where the two meet."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import structs
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.errors import (
    ConflictError,
    DiskFullError,
    NotFoundError,
    SwapError,
    UnavailableError,
    UserError,
)
from cluster.records.trace import Refusal
from cluster.types import Principal

logger = logging.getLogger(__name__)

Handlers = dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]


class Refused(Exception):
    """A request answered with an error; carries what the client will read."""

    def __init__(
        self,
        refusal: Refusal,
        trace_id: str | None = None,
        *,
        principal: Principal | None = None,
        model: str = "",
    ) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.trace_id = trace_id
        """Its record, where the request has one already."""
        self.principal, self.model = principal, model


_NOT_THERE = object()
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


def for_shape(refusal: Refusal, *, chat: bool) -> Refusal:
    """A stage's refusal with the name that the caller gave the text: a prompt is no messages."""
    if chat or refusal.param != "messages":
        return refusal
    return structs.replace(
        refusal, param="prompt", message=refusal.message.replace("messages hold", "prompt holds")
    )


def error_body(refusal: Refusal) -> dict[str, Any]:
    """`{"error": {...}}` as OpenAI clients expect it."""
    kind = _TYPES.get(
        refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error"
    )
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def respond(refusal: Refusal, trace_id: str | None = None) -> JSONResponse:
    """The HTTP answer to a refused request."""
    headers = {"x-headrace-trace-id": trace_id} if trace_id else {}
    if refusal.status in (429, 503) and refusal.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
    return JSONResponse(error_body(refusal), refusal.status, headers)


def invalid(error: ValidationError, body: object = None) -> Refusal:
    """The problem of a `body` that does not fit its model, by its path in the body; without a body,
    by its path in the model.

    A value that fits no branch of a union has an error for each: the one that got furthest into the
    value is of the branch that was meant.
    """
    found = [(_path(item["loc"], item["type"], body), item) for item in error.errors()]
    path, first = max(found, key=lambda one: len(one[0]))
    where = ".".join(map(str, path))
    unknown = first["type"] == "extra_forbidden"
    message = "not supported" if unknown else first["msg"].removeprefix("Value error, ")
    code = "unsupported_parameter" if unknown else "invalid_value"
    return Refusal(400, code, f"{where or 'body'}: {message}", where or None)


def _path(location: tuple[int | str, ...], kind: str, body: object) -> list[int | str]:
    """The parts of pydantic's location that are in the body: branches of unions are not."""
    if body is None:
        return list(location)
    path = list[int | str]()
    for index, part in enumerate(location):
        missing = kind == "missing" and index == len(location) - 1
        inner = _NOT_THERE if missing else _inner(body, part)
        if inner is not _NOT_THERE or missing:
            path.append(part)
            body = inner
    return path


def _inner(body: object, part: int | str) -> object:
    if isinstance(body, dict):
        return body.get(part, _NOT_THERE)
    if isinstance(body, list) and isinstance(part, int) and part < len(body):
        found: object = body[part]
        return found
    return _NOT_THERE


async def _fault(_request: Request, _error: Exception) -> Response:
    """Ours, not the client's: the server logs it, the client gets no detail."""
    return respond(
        Refusal(500, "internal_error", "an internal error; the request was not answered")
    )


def handlers(recorded: Callable[[Refused, str], Awaitable[str | None]]) -> Handlers:
    """What answers each kind of error; `recorded` puts a refusal on record, by the path asked."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        error.principal = error.principal or getattr(request.state, "principal", None)
        trace_id = error.trace_id or await recorded(error, request.url.path)
        return respond(error.refusal, trace_id)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = Refusal(error.status_code, "http_error", str(error.detail))
        response = await refused(request, Refused(refusal))
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(sorted(_allowed(request)))
        return response

    async def conflict(request: Request, error: Exception) -> Response:
        return await refused(request, Refused(Refusal(409, "conflict", str(error))))

    async def missing(request: Request, error: Exception) -> Response:
        return await refused(request, Refused(Refusal(404, "not_found", str(error))))

    async def swap(request: Request, error: Exception) -> Response:
        return await refused(request, Refused(Refusal(409, "not_proved", str(error))))

    async def full(_request: Request, error: Exception) -> Response:
        return respond(Refusal(507, "disk_full", str(error)))

    async def away(_request: Request, error: Exception) -> Response:
        return respond(Refusal(503, "unavailable", str(error), retry_after_s=1.0))

    async def user(request: Request, error: Exception) -> Response:
        return await refused(request, Refused(Refusal(400, "invalid_value", str(error))))

    return {
        Exception: _fault,
        Refused: refused,
        ConflictError: conflict,
        NotFoundError: missing,
        SwapError: swap,
        DiskFullError: full,
        UnavailableError: away,
        UserError: user,
        HTTPException: http,
    }


def _allowed(request: Request) -> set[str]:
    """The methods of all routes of a path: one route knows its own only."""
    return {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.path_regex.match(request.url.path)
        for method in route.methods or ()
    }


async def answer(request: Request, error: Exception, answers: Handlers) -> Response:
    """What the client reads instead of its answer; a fault of ours is logged."""
    kind = next(kind for kind in type(error).__mro__ if kind in answers)
    if kind is Exception:
        logger.error("a request to %s failed", request.url.path, exc_info=error)
    return await answers[kind](request, error)
