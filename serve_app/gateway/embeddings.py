"""`POST /v1/embeddings`: the sentence embeddings of the model that routing is built on.

Each text is normalised, masked and recorded like any other request.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from msgspec import structs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.records.trace import Refusal
from cluster.records.usage import TokenUsage
from cluster.types import Principal, Role
from serve_app.config import GatewayConfig
from serve_app.gateway import answers, wire
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.bodies import parse
from serve_app.gateway.budgets import Budgets
from serve_app.gateway.errors import Refused
from serve_app.gateway.shares import Shares
from serve_app.generation.refusals import crowded
from serve_app.pipeline.pipeline import Pipeline
from serve_app.pipeline.steps import unavailable
from serve_app.protocol import EMBEDDING_MODEL, Envelope, Sampling
from serve_app.tasks import in_turn

CountTokens = Callable[[list[str]], int]
"""Tokens of the texts as the embedding model reads them."""


class Embeddings:
    """The route's handler."""

    def __init__(
        self,
        pipeline: Pipeline,
        authenticate: Authenticator,
        config: GatewayConfig,
        count_tokens: CountTokens,
        budgets: Budgets,
        *,
        shares: Shares,
    ) -> None:
        self._pipeline, self._budgets, self._shares = pipeline, budgets, shares
        self._authenticate = authenticate
        self._config = config
        self._count_tokens = count_tokens

    async def __call__(self, request: Request) -> Response:
        """Embed each text of the body."""
        principal = await self._authenticate.admit(request, Role.INFERENCE, counted=False)
        body = await parse(request, wire.EmbeddingsRequest, self._config.max_body_bytes)
        if body.model != EMBEDDING_MODEL:
            message = f"model {body.model[:64]!r} embeds nothing here; use {EMBEDDING_MODEL}"
            unknown = Refusal(404, "model_not_found", message, "model")
            raise Refused(unknown, principal=principal, model=body.model)
        share = self._shares.take(principal.tenant, len(body.texts))
        if share is None:
            raise Refused(crowded(), principal=principal, model=body.model)
        try:
            # The largest body takes the tokenizer a second: not on the loop of all others.
            counts = await asyncio.to_thread(
                lambda: [self._count_tokens([one]) for one in body.texts]
            )
        except BaseException:
            share.release()
            raise
        envelopes = [
            _envelope(text, principal, tokens)
            for text, tokens in zip(body.texts, counts, strict=True)
        ]
        hold = await self._budgets.hold(share, principal, EMBEDDING_MODEL, envelopes, choices=1)
        try:
            found = await in_turn([self._pipeline.embed(one, hold.ended) for one in envelopes])
        finally:
            hold.close()
        for envelope in found:
            # Routing may be configured to fail open; a vector that is not there cannot.
            refusal = envelope.refusal or (None if envelope.embedding else unavailable("routing"))
            if refusal is not None:
                texts = "input" if refusal.param == "messages" else refusal.param
                raise Refused(structs.replace(refusal, param=texts), envelope.trace_id)
        answer = answers.embeddings(
            EMBEDDING_MODEL,
            [envelope.embedding for envelope in found],
            body.encoding_format,
            sum(envelope.usage.input_tokens for envelope in found if envelope.usage),
        )
        headers = {"x-headrace-trace-id": found[0].trace_id, **hold.headers}
        return JSONResponse(answer, headers=headers)


def _envelope(text: str, principal: Principal, tokens: int) -> Envelope:
    return Envelope(
        trace_id=f"tr-{uuid.uuid4().hex}",
        received_at=time.time(),
        tenant=principal.tenant,
        attributes=dict(principal.attributes),
        model=EMBEDDING_MODEL,
        messages=[{"role": "user", "content": text}],
        sampling=Sampling(),
        key_id=principal.key_id,
        chat=False,
        usage=TokenUsage(EMBEDDING_MODEL, tokens, 0),
    )
