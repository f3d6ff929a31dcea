"""The OpenAI wire format: request bodies as strict, bounded models, and response bodies."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve_app.protocol import Generation

_MAX_TEXT = 200_000
_MAX_METADATA = 16


class TextPart(BaseModel):
    """One text part of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str = Field(max_length=_MAX_TEXT)


class ChatMessage(BaseModel):
    """A message; content may be text or a list of text parts."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content")
    @classmethod
    def _bounded(cls, value: str | list[TextPart]) -> str | list[TextPart]:
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise ValueError(f"content is over {_MAX_TEXT} characters")
        return value

    def plain(self) -> dict[str, str]:
        """Role and text as the stages use them."""
        text = (
            self.content
            if isinstance(self.content, str)
            else " ".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`. Fields we do not act on are refused by name, not ignored."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=128)
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=100_000)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: str | None = Field(default=None, max_length=128)
    metadata: dict[str, str] | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        items = [value] if isinstance(value, str) else value or []
        if len(items) > 4 or any(not 0 < len(item) <= 64 for item in items):
            raise ValueError("stop takes at most 4 strings of 1 to 64 characters")
        return value

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value and (
            len(value) > _MAX_METADATA
            or any(len(key) > 64 or len(text) > 512 for key, text in value.items())
        ):
            raise ValueError(
                f"metadata takes {_MAX_METADATA} keys of 64 and values of 512 characters"
            )
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def usage(generation: Generation) -> dict[str, int]:
    """Token counts as OpenAI names them."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
    }


def completion(trace_id: str, created: int, generation: Generation, text: str) -> dict[str, Any]:
    """A `chat.completion` body; `model` is the concrete version that answered."""
    return {
        "id": trace_id,
        "object": "chat.completion",
        "created": created,
        "model": generation.version,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": generation.finish_reason,
                "logprobs": None,
            }
        ],
        "usage": usage(generation),
    }


def chunk(
    trace_id: str,
    created: int,
    model: str,
    delta: dict[str, str],
    finish_reason: str | None = None,
) -> str:
    """One server-sent event of a streamed answer."""
    body = {
        "id": trace_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}],
    }
    return event(body)


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
