"""Chat and text completions: one handler over both of OpenAI's shapes."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from msgspec import structs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.control.protocol import RoutingTable
from cluster.records.trace import Refusal
from cluster.types import Principal, Role
from serve_app.config import GatewayConfig
from serve_app.gateway import answers, wire
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.bodies import parse
from serve_app.gateway.budgets import Budgets
from serve_app.gateway.errors import Refused, for_shape
from serve_app.gateway.headers import WARNINGS, header_value
from serve_app.gateway.shares import Shares
from serve_app.gateway.streams import streamed
from serve_app.generation.refusals import crowded, unserved
from serve_app.pipeline.pipeline import Pipeline
from serve_app.protocol import Envelope, PromptCount, Sampling
from serve_app.stages.routing import AUTO
from serve_app.tasks import in_turn

#: Attribute of a key whose requests may carry attributes of the user behind them.
VOUCHES = "vouches_for_users"


class Completions:
    """The handler of `/v1/chat/completions` and `/v1/completions`."""

    def __init__(
        self,
        pipeline: Pipeline,
        authenticate: Authenticator,
        table: Callable[[], RoutingTable],
        *,
        base_model: str,
        config: GatewayConfig,
        budgets: Budgets,
        shares: Shares,
        most_characters: int | None = None,
        rerouted: bool = False,
    ) -> None:
        """`rerouted` is whether a policy may have another model answer than the one named; a
        conversation of more than `most_characters` fits no model's window."""
        self._most_characters = most_characters
        self._rerouted = rerouted
        self._pipeline = pipeline
        self._budgets, self._shares = budgets, shares
        self._authenticate = authenticate
        self._table = table
        self._base_model = base_model
        self._config = config

    async def __call__(self, request: Request, shape: type[wire.GenerateRequest]) -> Response:
        """Answer a request whose body has `shape`.

        Every choice takes every step and has a trace of its own: each is judged and recorded.
        """
        principal = await self._authenticate.admit(request, Role.INFERENCE, counted=False)
        body = await parse(request, shape, self._config.max_body_bytes)
        self._check(body, principal)
        envelopes = self._envelopes(body, principal)
        chat = isinstance(body, wire.ChatRequest)
        known = None if body.model == AUTO or self._rerouted else body.model
        share = self._shares.take(principal.tenant, len(envelopes))
        if share is None:
            raise Refused(crowded(), principal=principal, model=body.model)
        hold = await self._budgets.hold(share, principal, known, envelopes)
        if body.stream:
            valid = self._authenticate.watch(request)
            return await streamed(self._pipeline, envelopes, body, hold, chat=chat, valid=valid)
        try:
            if len(envelopes) == 1:
                passed = [await self._pipeline.answer(envelopes[0], hold.ended)]
            else:
                passed = await in_turn(
                    [self._pipeline.answer(one, hold.ended) for one in envelopes]
                )
        finally:
            hold.close()
        finished = []
        for envelope, text in passed:
            if envelope.refusal is not None:
                raise Refused(for_shape(envelope.refusal, chat=chat), envelope.trace_id)
            assert envelope.generation is not None
            finished.append((envelope.generation, text))
        first = passed[0][0]
        return JSONResponse(
            answers.completion(
                first.trace_id,
                int(first.received_at),
                finished,
                body.n,
                chat=chat,
                offer=body.offered,
            ),
            headers={**response_headers(first), **hold.headers},
        )

    def _check(self, body: wire.GenerateRequest, principal: Principal) -> None:
        table, model = self._table(), body.model
        if model not in (AUTO, self._base_model) and table.resolve(principal, model) is None:
            refusal = unserved(table, principal, model)
            if refusal.status == 404:
                reached = sorted(name for name in table.live if table.reaches(principal, name))
                served = ", ".join([AUTO, self._base_model, *reached[:50]])
                refusal = structs.replace(refusal, message=f"{refusal.message}; served: {served}")
            raise Refused(refusal, principal=principal, model=model)
        limit = self._config.max_messages
        if any(len(messages) > limit for messages in body.conversations):
            raise Refused(
                Refusal(400, "too_many_messages", f"at most {limit} messages", "messages")
            )
        most, read = self._most_characters, max(map(_characters, body.conversations))
        if most is not None and read > most:
            message = f"a conversation of {read} characters fits no window here: at most {most}"
            refusal = Refusal(400, "context_length_exceeded", message, "messages")
            raise Refused(for_shape(refusal, chat=isinstance(body, wire.ChatRequest)))

    def _envelopes(self, body: wire.GenerateRequest, principal: Principal) -> list[Envelope]:
        """One for each choice of each prompt, the choices of a prompt side by side."""
        sampling = Sampling(
            max_tokens=body.limit or self._config.max_tokens_default,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=body.stops,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            top_logprobs=body.alternatives,
            json_schema=body.schema_text,
        )
        tools = json.dumps(body.offered.tools) if body.offered else None
        listed = body.listed
        return [
            Envelope(
                trace_id=f"tr-{uuid.uuid4().hex}",
                received_at=time.time(),
                tenant=principal.tenant,
                attributes=_attributes(body, principal),
                model=body.model,
                messages=messages,
                key_id=principal.key_id,
                models=principal.models,
                user=body.user or "",
                tools=tools,
                structured=tools is not None or sampling.json_schema is not None,
                listed=listed,
                placeholders=body.placeholders,
                # The same seed for each choice would make them the same.
                sampling=replace(sampling, seed=sampling.seed + choice)
                if sampling.seed is not None
                else sampling,
                metadata=dict(body.metadata or {}),
                warnings=list(body.warnings),
                stream=body.stream,
                chat=isinstance(body, wire.ChatRequest),
                counting=counting,
            )
            for messages, counting in ((one, PromptCount()) for one in body.conversations)
            for choice in range(body.n)
        ]


def _characters(messages: list[dict[str, str]]) -> int:
    return sum(len(text) for message in messages for text in message.values())


def _attributes(body: wire.GenerateRequest, principal: Principal) -> dict[str, str]:
    """What policy may rely on: the key's attributes, which win, and its application's users'.

    Only a key that was issued to vouch for users may bring theirs; any other caller could talk
    itself into a tier.
    """
    if principal.attributes.get(VOUCHES) != "true":
        return dict(principal.attributes)
    return {**(body.metadata or {}), **principal.attributes}


def response_headers(envelope: Envelope) -> dict[str, str]:
    # An attempt that failed is a child of the generation's span, and its time a part of it.
    spans = [span for span in envelope.spans if not span.parent]
    overhead = sum(span.ms for span in spans if span.name != "generation")
    headers = {
        "x-headrace-trace-id": envelope.trace_id,
        "x-headrace-overhead-ms": f"{overhead:.2f}",
        "x-headrace-cache": envelope.cache,
        "Server-Timing": ", ".join(f"{span.name};dur={span.ms:.2f}" for span in spans),
    }
    if envelope.generation is not None:
        headers["x-headrace-model"] = envelope.generation.version
    if envelope.route is not None:
        route = envelope.route
        headers["x-headrace-route"] = header_value(
            f"{route.adapter or 'base'}; intent={route.intent}; confidence={route.confidence:.3f}"
        )
    if envelope.warnings:
        headers[WARNINGS] = header_value("; ".join(envelope.warnings))
    return headers
