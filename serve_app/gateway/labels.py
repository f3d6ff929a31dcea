"""The label queue over HTTP, for annotators whose key has the `label` role."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.control.contracts import Labels
from cluster.records.labels import GivenLabel
from cluster.records.trace import Refusal
from cluster.types import TEXT, Role
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.bodies import parse
from serve_app.gateway.delegation import reaches
from serve_app.gateway.errors import Refused
from serve_app.gateway.leniency import Int, WireModel, without_nulls


class ClaimRequest(WireModel):
    """`POST /v1/labels/claim`."""

    annotator: str = Field(min_length=1, max_length=64, pattern=TEXT)
    limit: Int = Field(default=20, ge=1, le=500)


class SubmitRequest(WireModel):
    """`POST /v1/labels`."""

    labels: list[Annotated[GivenLabel, BeforeValidator(without_nulls)]] = Field(
        min_length=1, max_length=500
    )


def label_routes(authenticate: Authenticator, labels: Labels) -> list[Route]:
    """Claim, submit and count."""
    limit = 4 << 20

    async def claim(request: Request) -> Response:
        principal = await authenticate.admit(request, Role.LABEL)
        body = await parse(request, ClaimRequest, limit)
        adapters = sorted(principal.models)
        tasks = await labels.claim(principal.tenant, body.annotator, body.limit, adapters)
        return JSONResponse({"tasks": [task.model_dump(mode="json") for task in tasks]})

    async def submit(request: Request) -> Response:
        principal = await authenticate.admit(request, Role.LABEL)
        body = await parse(request, SubmitRequest, limit)
        for label in body.labels:
            if not reaches(principal, label.adapter):
                why = f"this key labels {', '.join(sorted(principal.models))} only"
                raise Refused(Refusal(403, "access_denied", why), principal=principal)
        accepted = await labels.submit(principal.tenant, body.labels)
        return JSONResponse({"accepted": accepted})

    async def counts(request: Request) -> Response:
        principal = await authenticate.admit(request, Role.LABEL)
        return JSONResponse({"counts": await labels.counts(principal.tenant)})

    return [
        Route("/v1/labels/claim", claim, methods=["POST"]),
        Route("/v1/labels", submit, methods=["POST"]),
        Route("/v1/labels", counts, methods=["GET"]),
    ]
