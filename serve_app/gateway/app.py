"""The gateway's routes, built from collaborators so that a test needs neither Ray nor an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cluster.control.contracts import Control
from cluster.control.protocol import RoutingTable
from cluster.types import Principal, Role
from serve_app.config import GatewayConfig
from serve_app.gateway import errors, openapi
from serve_app.gateway.admin import admin_routes
from serve_app.gateway.admission import Admission
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.budgets import Budgets
from serve_app.gateway.completions import Completions
from serve_app.gateway.embeddings import CountTokens, Embeddings
from serve_app.gateway.errors import Refused
from serve_app.gateway.fast_path import FastPath, Handler
from serve_app.gateway.feedback import Feedback
from serve_app.gateway.labels import label_routes
from serve_app.gateway.refusal_log import RefusalLog
from serve_app.gateway.shares import Shares
from serve_app.gateway.wire import ChatRequest, CompletionRequest
from serve_app.generation.refusals import unserved
from serve_app.pipeline.pipeline import Pipeline
from serve_app.protocol import EMBEDDING_MODEL, STAGES
from serve_app.stages.routing import AUTO

#: Headers of an answer that a browser shows its page; a pattern would mean nothing here.
_EXPOSED = (
    *(
        f"x-headrace-{name}"
        for name in ("trace-id", "model", "route", "cache", "overhead-ms", "warnings")
    ),
    "Retry-After",
    "Server-Timing",
)


def create_app(
    *,
    pipeline: Pipeline,
    authenticate: Authenticator,
    table: Callable[[], RoutingTable],
    base_model: str,
    config: GatewayConfig,
    count_tokens: CountTokens,
    budgets: Budgets,
    control: Control,
    most_characters: int | None = None,
    rerouted: bool = False,
) -> ASGIApp:
    """The ASGI application of one gateway replica; no conversation of more than `most_characters`
    fits the model's window."""
    shares = Shares(config.max_tenant_under_way)
    completions = Completions(
        pipeline,
        authenticate,
        table,
        base_model=base_model,
        config=config,
        budgets=budgets,
        shares=shares,
        most_characters=most_characters,
        rerouted=rerouted,
    )
    feedback = Feedback(
        pipeline, authenticate, table, control.rollouts, budgets, base_model=base_model
    )
    embeddings = Embeddings(pipeline, authenticate, config, count_tokens, budgets, shares=shares)

    async def chat(request: Request) -> Response:
        return await completions(request, ChatRequest)

    async def text(request: Request) -> Response:
        return await completions(request, CompletionRequest)

    async def health(_request: Request) -> Response:
        # Anybody may ask: nothing here moves with what tenants do.
        return JSONResponse({"status": "ok", "stages": list(STAGES)})

    described = json.dumps(openapi.describe()).encode()

    async def description(_request: Request) -> Response:
        return Response(described, media_type="application/json")

    busy: dict[str, Handler] = {
        "/v1/chat/completions": chat,
        "/v1/completions": text,
        "/v1/embeddings": embeddings.__call__,
    }
    answers = errors.handlers(RefusalLog(pipeline.note, partial(budgets.count, key_only=True)))
    app = Starlette(
        routes=[
            *(Route(path, handler, methods=["POST"]) for path, handler in busy.items()),
            *_model_routes(authenticate, table, base_model),
            Route("/health", health, methods=["GET"]),
            Route("/openapi.json", description, methods=["GET"]),
            Route("/v1/feedback", feedback.__call__, methods=["POST"]),
            *label_routes(authenticate, control.labels),
            *admin_routes(authenticate, control),
        ],
        exception_handlers=answers,
    )
    gateway = Admission(FastPath(app, busy, answers), lambda: pipeline.full(config.max_under_way))
    return _with_cors(gateway, config.cors_origins) if config.cors_origins else gateway


def _model_routes(
    authenticate: Authenticator, table: Callable[[], RoutingTable], base_model: str
) -> list[Route]:
    async def models(request: Request) -> Response:
        principal = await authenticate.admit(request, Role.INFERENCE)
        return JSONResponse({"object": "list", "data": _models(table(), principal, base_model)})

    async def model(request: Request) -> Response:
        principal = await authenticate.admit(request, Role.INFERENCE)
        name: str = request.path_params["model"]
        for known in _models(table(), principal, base_model):
            if name in (known["id"], known["root"]):
                return JSONResponse(known)
        served = table().resolve(principal, name)
        if served is None:
            raise Refused(unserved(table(), principal, name), principal=principal, model=name)
        return JSONResponse(_model(name, base_model, served.label))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
    ]


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app` for pages of `origins`. A page sends its key itself: no cookies are allowed."""
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=600,
    )


def _models(table: RoutingTable, caller: Principal, base_model: str) -> list[dict[str, Any]]:
    """What `caller` may name; an adapter names its base as `parent` and its version as `root`."""
    entries = [
        _model(AUTO, None, AUTO),
        _model(base_model, None, base_model),
        _model(EMBEDDING_MODEL, None, EMBEDDING_MODEL),
    ]
    for name, adapter in sorted(table.live.items()):
        if not table.reaches(caller, name):
            continue
        entries.append(_model(name, base_model, adapter.label))
    return entries


def _model(name: str, parent: str | None, root: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "headrace",
        "parent": parent,
        "root": root,
    }
