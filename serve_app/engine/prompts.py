"""A request's messages and tools as a chat template is given them. Knows no engine library.

Owns that nothing a caller wrote is a control token of the model, whatever the model calls its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from serve_app import tools
from serve_app.protocol import GenerationRequest


class ControlTokens:
    """The strings that a tokenizer reads as control tokens, and text without them."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """`tokens` of one character are letters to a reader: those stay."""
        # The longest first, for one may begin with another.
        found = sorted({one for one in tokens if len(one) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None

    def split(self, text: str) -> str:
        """`text` with a space inside each control token: it reads the same and is none."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)

    def split_all(self, value: Any) -> Any:
        """A copy of a JSON value with `split` applied to each string, keys included."""
        if isinstance(value, str):
            return self.split(value)
        if isinstance(value, list):
            return [self.split_all(item) for item in value]
        if isinstance(value, dict):
            return {self.split(key): self.split_all(item) for key, item in value.items()}
        return value


def conversation(
    request: GenerationRequest, control: ControlTokens, *, knows_tools: bool
) -> dict[str, Any]:
    """The arguments of a chat template: tools as such where it knows them, else in words."""
    messages, offered = list(request.messages), request.sampling.tools
    if not offered and all(message.keys() == {"role", "content"} for message in messages):
        return {"conversation": control.split_all(messages)}
    if not knows_tools:
        return {"conversation": control.split_all(tools.in_words(messages, offered))}
    return {
        "conversation": control.split_all(tools.structured(messages)),
        "tools": control.split_all(json.loads(offered)) if offered else None,
    }
