"""The OpenAI wire format on the way in: request bodies as strict, bounded models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_app.tools import ToolCall, forced_schema, read

MAX_CHOICES = 8
_MAX_TEXT = 200_000
_MAX_METADATA = 16
_MAX_SCHEMA = 16_384
_MAX_PROMPTS = 32
_MAX_INPUTS = 256


@dataclass(frozen=True)
class Offer:
    """Tools in OpenAI's shape, and which of them is to be called: a name, `auto` or `required`."""

    tools: list[dict[str, Any]]
    choice: str

    @property
    def schema(self) -> str | None:
        """What an answer that must be a call has to fit."""
        return forced_schema(self.tools, self.choice)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """The words of an answer, and its calls."""
        names = {tool["function"]["name"] for tool in self.tools}
        return read(text, names, forced=self.choice != "auto")


class TextPart(BaseModel):
    """One text part of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str = Field(max_length=_MAX_TEXT)


class CalledFunction(BaseModel):
    """Which function an earlier answer called, and with what."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    arguments: str = Field(max_length=_MAX_SCHEMA)


class EarlierCall(BaseModel):
    """A tool call of an earlier answer."""

    model_config = ConfigDict(extra="ignore")
    id: str = Field(max_length=64)
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """A message; content may be text or a list of text parts."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[EarlierCall] | None = Field(default=None, max_length=32)
    tool_call_id: str | None = Field(default=None, max_length=64)

    @field_validator("content")
    @classmethod
    def _bounded(cls, value: str | list[TextPart] | None) -> str | list[TextPart] | None:
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise ValueError(f"content is over {_MAX_TEXT} characters")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("a message needs content; only an assistant's tool_calls go without")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with the role tool, and only with it")
        return self

    def plain(self) -> dict[str, str]:
        """The message as the stages use it: texts only, so that each of them can be masked."""
        content = self.content or ""
        text = content if isinstance(content, str) else " ".join(part.text for part in content)
        plain = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            plain["tool_calls"] = json.dumps([call.model_dump() for call in self.tool_calls])
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        return plain


class Function(BaseModel):
    """A function the model may call."""

    model_config = ConfigDict(extra="ignore")
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=4096)
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool; OpenAI knows the one kind."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: Function


class ChosenFunction(BaseModel):
    """The name of the function that must be called."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)


class ChosenTool(BaseModel):
    """The tool that must be called."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: ChosenFunction


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

    @property
    def offered(self) -> Offer | None:
        """The tools the model may call."""
        return None


class ChatRequest(GenerateRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=100_000)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, min_length=1, max_length=64)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        if self.tools is None:
            if self.tool_choice not in (None, "none", "auto"):
                raise ValueError("tool_choice asks for a tool, but there are no tools")
            return self
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names a function that is not among the tools")
        if len(json.dumps([tool.model_dump() for tool in self.tools])) > _MAX_SCHEMA:
            raise ValueError(f"the tools are over {_MAX_SCHEMA} characters of JSON")
        return self

    @property
    def offered(self) -> Offer | None:
        """None also where `tool_choice` is `none`: the model then hears of no tools."""
        if self.tools is None or self.tool_choice == "none":
            return None
        choice = self.tool_choice or "auto"
        name = choice if isinstance(choice, str) else choice.function.name
        return Offer([tool.model_dump(exclude_none=True) for tool in self.tools], name)

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
        """From a tool that must be called, else from `response_format`."""
        forced = self.offered.schema if self.offered else None
        return forced or (self.response_format.schema_text if self.response_format else None)


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
