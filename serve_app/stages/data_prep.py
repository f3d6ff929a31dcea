"""Data-prep: brings every text of a request into one normal form. It judges nothing."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from cluster.governance.findings import OutOfTime, Tick, unlimited
from cluster.records.trace import Refusal
from cluster.text import normalise
from serve_app.long_texts import Busy, LongTexts, is_long, refusal
from serve_app.protocol import Envelope
from serve_app.tools import readable


class DataPrep:
    """Normalises text; a request with nothing left to answer is refused."""

    def __init__(self, limit_s: float = 2.0) -> None:
        """`limit_s` is the longest that one request's texts may take."""
        self._long = LongTexts(limit_s)

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Normalise each message, tool and metadata value of each envelope."""
        for envelope in batch:
            if not is_long(envelope.texts()):
                _prepare(envelope)
                continue
            try:
                await self._long.run(envelope.tenant, partial(_prepare, envelope))
            except (OutOfTime, Busy) as error:
                envelope.refusal = refusal(error)
        return batch


def _prepare(envelope: Envelope, tick: Tick = unlimited) -> None:
    messages = []
    for message in envelope.messages:
        tick()
        messages.append(_normalised(message))
    envelope.messages = messages
    envelope.metadata = {normalise(key): normalise(text) for key, text in envelope.metadata.items()}
    if envelope.tools is not None:
        envelope.tools = readable(envelope.tools, normalise)
    if not any(m["role"] == "user" and m["content"].strip() for m in envelope.messages):
        envelope.refusal = Refusal(
            400, "empty_messages", "messages hold no user text to answer", "messages"
        )


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
