"""Request bodies: read within a bound, checked by a strict model."""

from __future__ import annotations

import zlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from serve_app.gateway import errors
from serve_app.gateway.errors import Refused
from serve_app.protocol import Block

BodyT = TypeVar("BodyT", bound=BaseModel)
#: Of `zlib`: read gzip's and zlib's headers, or none.
_GZIP_OR_ZLIB, _RAW = 47, -15


async def parse(
    request: Request, model: type[BodyT], limit: int, *, optional: bool = False
) -> BodyT:
    """The request's body as `model`; size is checked while it is read, not after. One that is
    `optional` may be left out.

    Raises:
        Refused: 413 over `limit` bytes, 415 in an encoding that is not read, 400 where it does not
            fit `model`.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        message = f"content encoding {encoding[:32]!r} is not supported; send gzip, deflate or none"
        raise Refused(Block(415, "unsupported_encoding", message))
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise _too_large(limit)
    body = bytes(raw) if encoding == "identity" else _inflated(bytes(raw), encoding, limit)
    try:
        return model.model_validate_json(body or (b"{}" if optional else b""))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"the body is not valid JSON: {first['ctx']['error']}"
            raise Refused(Block(400, "invalid_json", message)) from error
        raise Refused(errors.invalid(error, from_json(body or b"{}"))) from error


def _too_large(limit: int) -> Refused:
    return Refused(Block(413, "body_too_large", f"the body is over {limit} bytes"))


def _inflated(raw: bytes, encoding: str, limit: int) -> bytes:
    """The decompressed body: no more than `limit` bytes of it are ever made."""
    modes = (_GZIP_OR_ZLIB,) if encoding != "deflate" else (_GZIP_OR_ZLIB, _RAW)
    for mode in modes:
        inflater = zlib.decompressobj(mode)
        try:
            body = inflater.decompress(raw, limit + 1)
        except zlib.error:
            continue
        if len(body) > limit:
            raise _too_large(limit)
        if inflater.eof and not inflater.unused_data:
            return body
    raise Refused(Block(400, "invalid_encoding", f"the body is not valid {encoding}"))
