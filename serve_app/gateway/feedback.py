"""`POST /v1/feedback`: what became of an answer. It is recorded, and counts in a rollout."""

from __future__ import annotations

import time
import uuid

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.types import Role
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.bodies import parse
from serve_app.gateway.errors import Refused
from serve_app.gateway.road import Road, TableSource, unserved
from serve_app.protocol import Envelope, Sampling

_LIMIT = 1 << 16


class FeedbackRequest(BaseModel):
    """The answer it is about, and what became of it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    trace_id: str = Field(min_length=1, max_length=64)
    model: str = Field(min_length=1, max_length=80)
    """The version that answered, as the answer named it."""
    disliked: bool | None = None
    """Whether the user disliked the answer."""
    escalated: bool | None = None
    """Whether a person had to take over."""

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        if self.disliked is None and self.escalated is None:
            raise ValueError("say whether the answer was disliked, or whether it was escalated")
        return self


class Feedback:
    """The route's handler."""

    def __init__(self, road: Road, authenticate: Authenticator, table: TableSource) -> None:
        self._road, self._authenticate, self._table = road, authenticate, table

    async def __call__(self, request: Request) -> Response:
        """Record the feedback and count it where the version is on trial."""
        principal = await self._authenticate(request.headers.get("authorization"), Role.INFERENCE)
        body = await parse(request, FeedbackRequest, _LIMIT)
        table, name = self._table(), body.model.partition("@")[0]
        if not table.reaches(principal, name):
            block = unserved(table, principal, body.model)
            raise Refused(block, principal=principal, model=body.model)
        envelope = Envelope(
            trace_id=f"tr-{uuid.uuid4().hex}",
            received_at=time.time(),
            tenant=principal.tenant,
            attributes={},
            model=body.model,
            messages=[],
            sampling=Sampling(),
            key_id=principal.key_id,
            metadata={
                "feedback_on": body.trace_id,
                **({} if body.disliked is None else {"disliked": str(body.disliked).lower()}),
                **({} if body.escalated is None else {"escalated": str(body.escalated).lower()}),
            },
        )
        await self._road.note(envelope)
        counted = self._road.trials.judged(
            body.model, disliked=body.disliked, escalated=body.escalated
        )
        return JSONResponse({"trace_id": envelope.trace_id, "counted": counted})
