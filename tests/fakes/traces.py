"""Builders of traces as the audit log holds them."""

from __future__ import annotations

from typing import Any

from cluster.records.trace import Refusal, RefusalTrace, RequestTrace
from cluster.records.usage import TokenUsage
from serve_app.protocol import Envelope


def request_trace(trace_id: str = "tr-1", **changes: Any) -> RequestTrace:
    """The trace of a small answered request of tenant acme, with `changes`."""
    fields: dict[str, Any] = {
        "trace_id": trace_id,
        "received_at": 49.0,
        "recorded_at": 50.0,
        "tenant": "acme",
        "key_id": "k-acme",
        "attributes": {},
        "requested_model": "auto",
        "metadata": {},
        "stream": False,
        "messages": [{"role": "user", "content": "hi"}],
        "masked": {},
        "route": None,
        "rules": [],
        "conflicts": [],
        "context": [],
        "prompt": [{"role": "user", "content": "hi"}],
        "generation": None,
        "usage": TokenUsage("care@1", 10, 3),
        "cache": "off",
        "answer": "",
        "verdicts": None,
        "refusal": None,
        "spans": [],
        "warnings": [],
        **changes,
    }
    return RequestTrace(**fields)


def refusal_of(envelope: Envelope) -> Refusal | None:
    """Why a request, or an attempt that never became one, was refused."""
    event = envelope.event
    return event.refusal if isinstance(event, RefusalTrace) else envelope.refusal
