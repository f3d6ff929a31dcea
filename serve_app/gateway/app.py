"""The gateway's routes, built from collaborators so that a test needs neither Ray nor an engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cluster.control.protocol import RoutingTable
from cluster.registry.labels import GivenLabel, LabelTask
from cluster.types import Principal, Role
from serve_app.config import GatewayConfig
from serve_app.gateway import errors, wire
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.errors import Refused
from serve_app.gateway.road import Road
from serve_app.handoff import overloaded
from serve_app.protocol import STAGES, Block, Envelope, Sampling
from serve_app.stages.routing import AUTO

#: Attribute of a key whose requests may carry attributes of the user behind them.
VOUCHES = "vouches_for_users"

BodyT = TypeVar("BodyT", bound=BaseModel)


class LabelQueue(Protocol):
    """The part of the control plane that annotators reach."""

    async def claim_labels(self, annotator: str, limit: int) -> list[LabelTask]: ...
    async def submit_labels(self, given: list[GivenLabel]) -> int: ...
    async def label_counts(self) -> dict[str, int]: ...


class ClaimRequest(BaseModel):
    """`POST /v1/labels/claim`."""

    model_config = ConfigDict(extra="forbid")
    annotator: str = Field(min_length=1, max_length=64)
    limit: int = Field(default=20, ge=1, le=500)


class SubmitRequest(BaseModel):
    """`POST /v1/labels`."""

    model_config = ConfigDict(extra="forbid")
    labels: list[GivenLabel] = Field(min_length=1, max_length=500)


def create_app(
    *,
    road: Road,
    authenticate: Authenticator,
    labels: LabelQueue,
    table: Callable[[], RoutingTable],
    base_model: str,
    config: GatewayConfig,
) -> Starlette:
    """The ASGI application of one gateway replica."""

    async def health(_request: Request) -> Response:
        return JSONResponse(
            {"status": "ok", "stages": list(STAGES), "generation": table().generation}
        )

    async def models(request: Request) -> Response:
        await authenticate(request.headers.get("authorization"), Role.INFERENCE)
        entries: list[dict[str, Any]] = [
            _model(AUTO, None, AUTO),
            _model(base_model, None, base_model),
        ]
        for name, adapter in sorted(table().live.items()):
            entries.append(_model(name, base_model, adapter.label))
        return JSONResponse({"object": "list", "data": entries})

    chat = _chat(
        road=road, authenticate=authenticate, table=table, base_model=base_model, config=config
    )
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            *_label_routes(authenticate, labels),
        ],
        exception_handlers=errors.HANDLERS,
    )


def _model(name: str, parent: str | None, root: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "headrace",
        "parent": parent,
        "root": root,
    }


def _chat(
    *,
    road: Road,
    authenticate: Authenticator,
    table: Callable[[], RoutingTable],
    base_model: str,
    config: GatewayConfig,
) -> Callable[[Request], Awaitable[Response]]:
    async def chat(request: Request) -> Response:
        if road.full(config.max_under_way):
            raise Refused(overloaded())
        principal = await authenticate(request.headers.get("authorization"), Role.INFERENCE)
        body = await _parse(request, wire.ChatRequest, config.max_body_bytes)
        _check_model(body.model, table(), base_model)
        if len(body.messages) > config.max_messages:
            raise Refused(
                Block(
                    400, "too_many_messages", f"at most {config.max_messages} messages", "messages"
                )
            )
        envelope = _envelope(body, principal, config)
        if body.stream:
            return await _streamed(road, envelope, body)
        finished, text = await road.answer(envelope)
        if finished.block is not None:
            raise Refused(finished.block, finished.trace_id)
        assert finished.generation is not None
        created = int(finished.received_at)
        return JSONResponse(
            wire.completion(finished.trace_id, created, finished.generation, text),
            headers=_headers(finished),
        )

    return chat


async def _parse(request: Request, model: type[BodyT], limit: int) -> BodyT:
    """The request's body as `model`; size is checked while it is read, not after."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise Refused(Block(413, "body_too_large", f"the body is over {limit} bytes"))
    try:
        return model.model_validate_json(bytes(raw))
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Refused(Block(400, "invalid_json", "the body is not valid JSON")) from error
        raise Refused(errors.invalid(error)) from error


def _check_model(model: str, table: RoutingTable, base_model: str) -> None:
    if model not in (AUTO, base_model) and table.resolve(model) is None:
        known = ", ".join([AUTO, base_model, *sorted(table.live)])
        shown = model[:64]
        raise Refused(
            Block(
                404,
                "model_not_found",
                f"model {shown!r} is not served here; served: {known}",
                "model",
            )
        )


def _envelope(body: wire.ChatRequest, principal: Principal, config: GatewayConfig) -> Envelope:
    limit = body.max_completion_tokens or body.max_tokens or config.max_tokens_default
    return Envelope(
        trace_id=f"tr-{uuid.uuid4().hex}",
        received_at=time.time(),
        tenant=principal.tenant,
        attributes=_attributes(body, principal),
        model=body.model,
        messages=[message.plain() for message in body.messages],
        sampling=Sampling(limit, body.temperature, body.top_p, body.seed, body.stops),
        metadata=body.metadata or {},
        stream=body.stream,
    )


def _attributes(body: wire.ChatRequest, principal: Principal) -> dict[str, str]:
    """What policy may rely on: the key's attributes, which win, and its application's users'.

    Only a key that was issued to vouch for users may bring theirs; any other caller could talk
    itself into a tier.
    """
    if principal.attributes.get(VOUCHES) != "true":
        return dict(principal.attributes)
    return {**(body.metadata or {}), **principal.attributes}


def _headers(envelope: Envelope) -> dict[str, str]:
    total = sum(span.ms for span in envelope.spans)
    generation = sum(span.ms for span in envelope.spans if span.stage == "generation")
    headers = {
        "x-headrace-trace-id": envelope.trace_id,
        "x-headrace-overhead-ms": f"{total - generation:.2f}",
        "Server-Timing": ", ".join(f"{span.stage};dur={span.ms:.2f}" for span in envelope.spans),
    }
    if envelope.generation is not None:
        headers["x-headrace-model"] = envelope.generation.version
    if envelope.warnings:
        headers["x-headrace-warnings"] = "; ".join(envelope.warnings)[:512]
    return headers


async def _streamed(road: Road, envelope: Envelope, body: wire.ChatRequest) -> StreamingResponse:
    items = road.stream(envelope)
    first = await anext(items)
    assert isinstance(first, Envelope)
    if first.block is not None:
        async for _ in items:
            pass  # a refused request is audited like any other
        raise Refused(first.block, first.trace_id)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    headers = {"x-headrace-trace-id": first.trace_id, "Cache-Control": "no-store"}
    return StreamingResponse(
        _events(items, first, include_usage), media_type="text/event-stream", headers=headers
    )


async def _events(
    items: AsyncGenerator[str | Envelope, None], envelope: Envelope, include_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events; the last chunks name the version that answered."""
    created, trace_id = int(envelope.received_at), envelope.trace_id
    # Which version answers is known once the engine has admitted the request, so the first chunks
    # carry what was asked for and the last one the concrete version.
    asked = envelope.model
    yield wire.chunk(trace_id, created, asked, {"role": "assistant", "content": ""})
    async with aclosing(items) as pieces:
        async for item in pieces:
            if isinstance(item, str):
                yield wire.chunk(trace_id, created, asked, {"content": item})
            elif item.block is not None:
                yield wire.event(errors.error_body(item.block))
            elif item.generation is not None:
                version = item.generation.version
                yield wire.chunk(trace_id, created, version, {}, item.generation.finish_reason)
                if include_usage:
                    yield wire.event(
                        {
                            "id": trace_id,
                            "object": "chat.completion.chunk",
                            "created": created,
                            "model": version,
                            "choices": [],
                            "usage": wire.usage(item.generation),
                        }
                    )
    yield "data: [DONE]\n\n"


def _label_routes(authenticate: Authenticator, labels: LabelQueue) -> list[Route]:
    limit = 4 << 20

    async def claim(request: Request) -> Response:
        await authenticate(request.headers.get("authorization"), Role.LABEL)
        body = await _parse(request, ClaimRequest, limit)
        tasks = await labels.claim_labels(body.annotator, body.limit)
        return JSONResponse({"tasks": [task.model_dump(mode="json") for task in tasks]})

    async def submit(request: Request) -> Response:
        await authenticate(request.headers.get("authorization"), Role.LABEL)
        body = await _parse(request, SubmitRequest, limit)
        return JSONResponse({"accepted": await labels.submit_labels(body.labels)})

    async def counts(request: Request) -> Response:
        await authenticate(request.headers.get("authorization"), Role.LABEL)
        return JSONResponse({"counts": await labels.label_counts()})

    return [
        Route("/v1/labels/claim", claim, methods=["POST"]),
        Route("/v1/labels", submit, methods=["POST"]),
        Route("/v1/labels", counts, methods=["GET"]),
    ]
