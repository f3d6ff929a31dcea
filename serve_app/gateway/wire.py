"""The OpenAI wire format: request bodies as strict, bounded models, and response bodies."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from itertools import accumulate
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.protocol import Generation, TokenLogprob

MAX_CHOICES = 8
_MAX_TEXT = 200_000
_MAX_METADATA = 16
_MAX_SCHEMA = 16_384
_MAX_PROMPTS = 32
_MAX_INPUTS = 256


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


class JsonSchema(BaseModel):
    """The schema of a structured answer."""

    model_config = ConfigDict(extra="ignore")
    name: str = Field(default="answer", max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value)) > _MAX_SCHEMA:
            raise ValueError(f"the schema is over {_MAX_SCHEMA} characters")
        return value


class ResponseFormat(BaseModel):
    """What the answer has to look like."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_text(self) -> str | None:
        """The JSON Schema to enforce, as JSON text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return '{"type": "object"}'
        return json.dumps(self.json_schema.schema_) if self.json_schema else None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self


class GenerateRequest(BaseModel):
    """What chat and text completions share. Fields we do not act on are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=128)
    max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
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

    @property
    def conversations(self) -> list[list[dict[str, str]]]:
        """The prompts to answer, each as messages."""
        raise NotImplementedError

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, where the client said so."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report for each token, or None."""
        raise NotImplementedError

    @property
    def schema_text(self) -> str | None:
        """The JSON Schema the answer has to fit, as JSON text."""
        return None

    @model_validator(mode="after")
    def _streams_one(self) -> Self:
        if self.stream and (self.n > 1 or len(self.conversations) > 1):
            raise ValueError("a stream carries one choice for one prompt: n must be 1")
        if self.stream and self.alternatives is not None:
            raise ValueError("logprobs come with whole answers: stream must be false")
        return self


class ChatRequest(GenerateRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=100_000)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @property
    def conversations(self) -> list[list[dict[str, str]]]:
        """The one conversation."""
        return [[message.plain() for message in self.messages]]

    @property
    def limit(self) -> int | None:
        """Either of OpenAI's names for it."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """`top_logprobs`, once `logprobs` is on."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def schema_text(self) -> str | None:
        """From `response_format`."""
        return self.response_format.schema_text if self.response_format else None


class CompletionRequest(GenerateRequest):
    """`POST /v1/completions`: texts to be continued as they stand."""

    prompt: str | list[str]
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 0 < len(texts) <= _MAX_PROMPTS or any(len(text) > _MAX_TEXT for text in texts):
            raise ValueError(f"1 to {_MAX_PROMPTS} prompts of at most {_MAX_TEXT} characters")
        return value

    @property
    def conversations(self) -> list[list[dict[str, str]]]:
        """Each prompt as one user message."""
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [[{"role": "user", "content": text}] for text in texts]

    @property
    def alternatives(self) -> int | None:
        """`logprobs` as it is."""
        return self.logprobs


class EmbeddingsRequest(BaseModel):
    """`POST /v1/embeddings`."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=128)
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(default=None, max_length=128)

    @field_validator("input")
    @classmethod
    def _inputs(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 0 < len(texts) <= _MAX_INPUTS or any(len(text) > _MAX_TEXT for text in texts):
            raise ValueError(f"1 to {_MAX_INPUTS} texts of at most {_MAX_TEXT} characters")
        return value

    @property
    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def usage(generations: list[Generation], choices: int = 1) -> dict[str, int]:
    """Token counts as OpenAI names them; a prompt counts once for all its `choices`."""
    prompt = sum(generation.prompt_tokens for generation in generations[::choices])
    written = sum(generation.completion_tokens for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def completion(
    trace_id: str, created: int, answers: list[tuple[Generation, str]], choices: int, *, chat: bool
) -> dict[str, Any]:
    """A whole answer's body; `model` is the concrete version that answered."""
    generations = [generation for generation, _ in answers]
    return {
        "id": trace_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": generations[0].version,
        "choices": [
            _choice(index, generation, text, chat=chat)
            for index, (generation, text) in enumerate(answers)
        ],
        "usage": usage(generations, choices),
    }


def _choice(index: int, generation: Generation, text: str, *, chat: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": generation.finish_reason}
    if chat:
        choice["message"] = {"role": "assistant", "content": text}
        choice["logprobs"] = _chat_logprobs(generation.tokens)
    else:
        choice["text"] = text
        choice["logprobs"] = _text_logprobs(generation.tokens)
    return choice


def _chat_logprobs(tokens: list[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "content": [
            {
                **_token(token.text, token.logprob),
                "top_logprobs": [_token(text, value) for text, value in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _text_logprobs(tokens: list[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    offsets = accumulate((len(token.text) for token in tokens[:-1]), initial=0)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": list(offsets)[: len(tokens)],
    }


def embeddings(model: str, vectors: list[bytes], encoding: str, tokens: int) -> dict[str, Any]:
    """An embeddings body; each vector is float32 bytes, `tokens` those of all the texts."""
    shown: list[Any] = [
        b64encode(vector).decode()
        if encoding == "base64"
        else list(struct.unpack(f"<{len(vector) // 4}f", vector))
        for vector in vectors
    ]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(shown)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def chunk(
    trace_id: str,
    created: int,
    model: str,
    text: str,
    finish_reason: str | None = None,
    *,
    chat: bool,
    role: bool = False,
) -> str:
    """One server-sent event of a streamed answer; the first of a chat names the `role`."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
    if not chat:
        choice["text"] = text
    elif role:
        choice["delta"] = {"role": "assistant", "content": text}
    else:
        choice["delta"] = {} if finish_reason else {"content": text}
    return event(_chunk(trace_id, created, model, [choice], chat=chat))


def usage_chunk(
    trace_id: str, created: int, model: str, generation: Generation, *, chat: bool
) -> str:
    """The last event of a stream whose client asked for the usage."""
    body = _chunk(trace_id, created, model, [], chat=chat)
    return event({**body, "usage": usage([generation])})


def _chunk(
    trace_id: str, created: int, model: str, choices: list[dict[str, Any]], *, chat: bool
) -> dict[str, Any]:
    return {
        "id": trace_id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
    }


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
