"""Refusals of a request for which no answer was generated, as its client reads them."""

from __future__ import annotations

import logging

from cluster.control.protocol import Caller, RoutingTable
from cluster.records.trace import Refusal
from serve_app.protocol import Envelope, NotSupported, PromptTooLong

logger = logging.getLogger(__name__)


def unserved(table: RoutingTable, caller: Caller, model: str) -> Refusal:
    """Why `model` does not answer `caller`. What is out of reach does not exist for them."""
    if table.stopped(caller, model):
        return killed(model)
    return Refusal(404, "model_not_found", f"model {model[:64]!r} is not served here", "model")


def killed(model: str) -> Refusal:
    """It was switched off."""
    return Refusal(503, "adapter_killed", f"{model} is switched off", "model")


def crowded() -> Refusal:
    """The tenant has its share of this gateway under way already."""
    message = "too many requests of this tenant are under way; try again"
    return Refusal(429, "too_many_requests", message, None, 1.0)


def impossible(error: PromptTooLong | NotSupported) -> Refusal:
    """The client asked for what the target cannot do."""
    if isinstance(error, PromptTooLong):
        return Refusal(400, "context_length_exceeded", str(error), "messages")
    return Refusal(400, "invalid_value", str(error))


def failed(envelope: Envelope) -> Refusal:
    """The engine's fault, which is logged; to be called where it is handled."""
    logger.exception("the engine failed on trace %s", envelope.trace_id)
    return Refusal(502, "engine_error", "the engine failed on this request; try again")


def swapping() -> Refusal:
    """No replica holds its version just now."""
    return Refusal(503, "adapter_unavailable", "the adapter is being replaced; try again")
