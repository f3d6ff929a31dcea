"""Data-prep: brings every text of a request into one normal form. It judges nothing."""

from __future__ import annotations

import json
from typing import Any

from cluster.text import normalise
from serve_app.protocol import Block, Envelope
from serve_app.tools import readable


class DataPrep:
    """Normalises text; a request with nothing left to answer is refused."""

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Normalise each message, tool and metadata value of each envelope."""
        for envelope in batch:
            envelope.messages = [_normalised(message) for message in envelope.messages]
            envelope.metadata = {
                normalise(key): normalise(text) for key, text in envelope.metadata.items()
            }
            if envelope.tools is not None:
                envelope.tools = readable(envelope.tools, normalise)
            if not any(m["role"] == "user" and m["content"].strip() for m in envelope.messages):
                envelope.block = Block(
                    400, "empty_messages", "messages hold no user text to answer", "messages"
                )
        return batch


def _normalised(message: dict[str, str]) -> dict[str, str]:
    found = {
        key: text if key in ("role", "tool_calls") else normalise(text)
        for key, text in message.items()
    }
    if "tool_calls" in message:
        # Strings of the parsed document: normalising its text could change a quote or an escape.
        calls = _normalised_value(json.loads(message["tool_calls"]))
        found["tool_calls"] = json.dumps(calls, ensure_ascii=False)
    return found


def _normalised_value(value: Any) -> Any:
    if isinstance(value, str):
        return normalise(value)
    if isinstance(value, list):
        return [_normalised_value(item) for item in value]
    if isinstance(value, dict):
        return {normalise(key): _normalised_value(item) for key, item in value.items()}
    return value
