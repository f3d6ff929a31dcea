"""Why the engine gives a request no answer, as its client reads it."""

from __future__ import annotations

import logging

from cluster.control.protocol import Caller, RoutingTable
from serve_app.protocol import Block, Envelope, NotSupported, PromptTooLong

logger = logging.getLogger(__name__)


def unserved(table: RoutingTable, caller: Caller, model: str) -> Block:
    """Why `model` does not answer `caller`. What is out of reach does not exist for them."""
    if table.stopped(caller, model):
        return killed(model)
    return Block(404, "model_not_found", f"model {model[:64]!r} is not served here", "model")


def killed(model: str) -> Block:
    """It was switched off."""
    return Block(503, "adapter_killed", f"{model} is switched off", "model")


def crowded() -> Block:
    """The tenant has its share of this gateway under way already."""
    message = "too many requests of this tenant are under way; try again"
    return Block(429, "too_many_requests", message, None, 1.0)


def refusal(error: PromptTooLong | NotSupported) -> Block:
    """The client asked for what the engine cannot do."""
    if isinstance(error, PromptTooLong):
        return Block(400, "context_length_exceeded", str(error), "messages")
    return Block(400, "invalid_value", str(error))


def failed(envelope: Envelope) -> Block:
    """The engine's fault, which is logged; to be called where it is handled."""
    logger.exception("the engine failed on trace %s", envelope.trace_id)
    return Block(502, "engine_error", "the engine failed on this request; try again")


def swapping() -> Block:
    """No replica holds its version just now."""
    return Block(503, "adapter_unavailable", "the adapter is being replaced; try again")
