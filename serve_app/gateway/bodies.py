"""Request bodies: read within a bound, checked by a strict model."""

from __future__ import annotations

import codecs
import zlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from cluster.records.trace import Refusal
from serve_app.gateway import errors
from serve_app.gateway.errors import Refused

BodyT = TypeVar("BodyT", bound=BaseModel)
#: Of `zlib`: read gzip's and zlib's headers, or none.
_GZIP_OR_ZLIB, _RAW = 47, -15
#: Faults of one body that are looked at.
_MANY = 100


async def parse(
    request: Request, model: type[BodyT], limit: int, *, optional: bool = False
) -> BodyT:
    """The request's body as `model`; size is checked while it is read, not after. One that is
    `optional` may be left out.

    Raises:
        Refused: 413 over `limit` bytes, 415 in an encoding that is not read, 400 where it does not
            fit `model`.
    """
    named = request.headers.get("content-encoding", "").lower().split(",")
    encodings = [one.strip() for one in named if one.strip() not in ("", "identity")]
    if len(encodings) > 1 or not set(encodings) <= {"gzip", "x-gzip", "deflate"}:
        message = "this content encoding is not supported; send gzip, deflate or none"
        raise Refused(Refusal(415, "unsupported_encoding", message))
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise _too_large(limit)
    body = _inflated(bytes(raw), encodings[0], limit) if encodings else bytes(raw)
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        return model.model_validate_json(body or (b"{}" if optional else b""))
    except ValidationError as error:
        if error.error_count() > _MANY:
            # To tell of one, pydantic makes all of them, in time that others wait for.
            message = f"{error.error_count()} parts of the body do not fit; see /openapi.json"
            raise Refused(Refusal(400, "invalid_value", message)) from error
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"the body is not valid JSON: {first['ctx']['error']}"
            raise Refused(Refusal(400, "invalid_json", message)) from error
        raise Refused(errors.invalid(error, from_json(body or b"{}"))) from error


def _too_large(limit: int) -> Refused:
    return Refused(Refusal(413, "body_too_large", f"the body is over {limit} bytes"))


def _inflated(raw: bytes, encoding: str, limit: int) -> bytes:
    """The decompressed body: no more than `limit` bytes of it are ever made."""
    modes = (_GZIP_OR_ZLIB,) if encoding != "deflate" else (_GZIP_OR_ZLIB, _RAW)
    for mode in modes:
        try:
            return _members(raw, mode, limit)
        except zlib.error:
            continue
    raise Refused(Refusal(400, "invalid_encoding", f"the body is not valid {encoding}"))


def _members(raw: bytes, mode: int, limit: int) -> bytes:
    """All members of a compressed body, one after another; zeros may pad its end."""
    body = b""
    while True:
        inflater = zlib.decompressobj(mode)
        body += inflater.decompress(raw, limit + 1 - len(body))
        if len(body) > limit:
            raise _too_large(limit)
        if not inflater.eof:
            raise zlib.error("cut short")
        raw = inflater.unused_data.lstrip(b"\0")
        if not raw:
            return body
