"""`POST /v1/feedback`: what became of an answer. It is recorded, and counts in a rollout."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.control.contracts import Rollouts
from cluster.control.protocol import RoutingTable
from cluster.records.trace import FeedbackTrace
from cluster.rollout.evidence import VariantStats
from cluster.types import AdapterVersion, Role
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.bodies import parse
from serve_app.gateway.budgets import Budgets
from serve_app.gateway.errors import Refused
from serve_app.gateway.leniency import Bool, Int, WireModel
from serve_app.generation.refusals import unserved
from serve_app.generation.trials import one
from serve_app.pipeline.pipeline import Pipeline
from serve_app.protocol import carrier

logger = logging.getLogger(__name__)
_LIMIT = 1 << 16
_OUTCOMES = ("disliked", "escalated", "resolved", "rating")


class FeedbackRequest(WireModel):
    """The answer it is about, and what became of it."""

    trace_id: str = Field(min_length=1, max_length=64)
    model: str = Field(min_length=1, max_length=80)
    """The version that answered, as the answer named it."""
    disliked: Bool | None = None
    """Whether the user disliked the answer."""
    escalated: Bool | None = None
    """Whether a person had to take over."""
    resolved: Bool | None = None
    """Whether the user's matter was settled."""
    rating: Int | None = Field(default=None, ge=1, le=5)

    @property
    def outcomes(self) -> dict[str, bool | int]:
        """What is known."""
        named = {name: getattr(self, name) for name in _OUTCOMES}
        return {name: value for name, value in named.items() if value is not None}

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        if not self.outcomes:
            raise ValueError(f"say what became of the answer: one of {', '.join(_OUTCOMES)}")
        return self


class Feedback:
    """The route's handler."""

    def __init__(
        self,
        pipeline: Pipeline,
        authenticate: Authenticator,
        table: Callable[[], RoutingTable],
        trials: Rollouts,
        budgets: Budgets,
        *,
        base_model: str,
    ) -> None:
        self._base_model = base_model
        self._pipeline, self._authenticate, self._table = pipeline, authenticate, table
        self._trials, self._budgets = trials, budgets

    async def __call__(self, request: Request) -> Response:
        """Record the feedback and count it where the version is on trial."""
        principal = await self._authenticate.admit(request, Role.INFERENCE)
        body = await parse(request, FeedbackRequest, _LIMIT)
        table, name = self._table(), body.model.partition("@")[0]
        if name != self._base_model and not table.reaches(principal, name):
            refusal = unserved(table, principal, body.model)
            raise Refused(refusal, principal=principal, model=body.model)
        now = time.time()
        event = FeedbackTrace(
            trace_id=f"tr-{uuid.uuid4().hex}",
            received_at=now,
            recorded_at=now,
            tenant=principal.tenant,
            key_id=principal.key_id,
            about=body.trace_id,
            version=body.model,
            outcomes=body.outcomes,
        )
        envelope = carrier(event)
        # It is on record for good, and so is one of the requests that a key may make.
        await self._budgets.count(principal, envelope)
        await self._pipeline.note(envelope)
        return JSONResponse({"trace_id": envelope.trace_id, "counted": await self._count(body)})

    async def _count(self, body: FeedbackRequest) -> bool:
        said: dict[str, Any] = {name: one(value) for name, value in body.outcomes.items()}
        found = VariantStats(**said)
        try:
            version = AdapterVersion.parse(body.model)
        except ValueError:
            return False  # the base model is on no trial
        try:
            return await self._trials.record_outcome(body.trace_id, version, found)
        except Exception:  # the control plane restarts; what was said is on record all the same
            logger.exception("feedback on %s was not counted", version)
            return False
