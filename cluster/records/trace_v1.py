"""Traces of version 1: untyped documents without a kind, upgraded when they are read.

Version 1 wrote refusals and feedback as requests without messages, their facts as `metadata`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.errors import DataError
from cluster.records.trace import FeedbackTrace, RefusalTrace, RequestTrace, Trace

_TRUTH = {"true": True, "false": False}


def upgrade(found: dict[str, Any]) -> Trace:
    """The trace that a document of version 1 stands for.

    Raises:
        DataError: it is none.
    """
    try:
        return _upgrade(found)
    except (msgspec.ValidationError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"not a trace of version 1: {error}") from error


def _upgrade(found: dict[str, Any]) -> Trace:
    metadata, common = found["metadata"], _common(found)
    if not found["messages"] and "feedback_on" in metadata:
        outcomes = {
            name: _TRUTH[value] if value in _TRUTH else int(value)
            for name, value in metadata.items()
            if name != "feedback_on"
        }
        changes = {
            "about": metadata["feedback_on"],
            "version": found["requested_model"],
            "outcomes": outcomes,
        }
        return msgspec.convert({"kind": "feedback", **common, **changes}, FeedbackTrace)
    if not found["messages"] and found["block"] is not None:
        changes = {
            "requested_model": found["requested_model"],
            "path": metadata.get("path", ""),
            "refusal": found["block"],
            "unrecorded_before": int(metadata.get("unrecorded_before", 0)),
        }
        return msgspec.convert({"kind": "refusal", **common, **changes}, RefusalTrace)
    changes = {
        "refusal": found["block"],
        "generation": _renamed(found["generation"]),
        "usage": _renamed(found["usage"]),
        "spans": [{"name": one["stage"], **one} for one in found["spans"]],
    }
    return msgspec.convert({"kind": "request", "schema": 1, **found, **changes}, RequestTrace)


def _common(found: dict[str, Any]) -> dict[str, Any]:
    names = ("trace_id", "received_at", "recorded_at", "tenant", "key_id")
    return {"schema": 1, **{name: found[name] for name in names}}


def _renamed(counts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Token counts in the vocabulary of version 2."""
    if counts is None:
        return None
    return {
        "target": counts["version"],
        "input_tokens": counts["prompt_tokens"],
        "output_tokens": counts["completion_tokens"],
        **counts,
    }
