"""Request bodies: read within a bound, checked by a strict model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from serve_app.gateway import errors
from serve_app.gateway.errors import Refused
from serve_app.protocol import Block

BodyT = TypeVar("BodyT", bound=BaseModel)


async def parse(
    request: Request, model: type[BodyT], limit: int, *, optional: bool = False
) -> BodyT:
    """The request's body as `model`; size is checked while it is read, not after. One that is
    `optional` may be left out.

    Raises:
        Refused: 413 over `limit` bytes, 400 where it does not fit `model`.
    """
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise Refused(Block(413, "body_too_large", f"the body is over {limit} bytes"))
    try:
        return model.model_validate_json(bytes(raw) or (b"{}" if optional else b""))
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Refused(Block(400, "invalid_json", "the body is not valid JSON")) from error
        raise Refused(errors.invalid(error)) from error
