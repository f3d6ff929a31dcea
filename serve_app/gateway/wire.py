"""The OpenAI wire format on the way in: request bodies as strict, bounded models."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cluster.governance.pii import may_hold
from cluster.governance.vault import placeholders
from serve_app.gateway.leniency import Bool, Float, Int, Metadata, Texts, WireModel
from serve_app.gateway.messages import MAX_SCHEMA, MAX_TEXT, ChatMessage, ChosenTool, Offer, Tool
from serve_app.schemas import check_schema
from serve_app.tools import listed_values

MAX_CHOICES = 8
#: Of the vectors that `/v1/embeddings` answers with.
DIMENSIONS = 384
_MAX_METADATA = 16
_MAX_PROMPTS = 32
_MAX_INPUTS = 256


class StreamOptions(WireModel):
    """Options of a streamed answer."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: Bool = False


class JsonSchema(WireModel):
    """The schema of a structured answer; it always binds, so `strict` adds nothing."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"strict", "description"})
    name: str = Field(default="answer", max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value)) > MAX_SCHEMA:
            raise ValueError(f"the schema is over {MAX_SCHEMA} characters")
        check_schema(value)
        return value


class ResponseFormat(WireModel):
    """What the answer has to look like."""

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


class GenerateRequest(WireModel):
    """What chat and text completions share."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "prediction",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning_effort",
            "safety_identifier",
            "service_tier",
            "store",
            "verbosity",
        }
    )
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "min_p": (0, 0.0),
        "repetition_penalty": (1, 1.0),
        "top_k": (-1, 0),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "stream_options": ({},),
        "suffix": ("",),
        "tools": ([],),
    }
    model: str = Field(min_length=1, max_length=128)
    max_tokens: Int | None = Field(default=None, ge=1, le=100_000)
    temperature: Float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: Float = Field(default=1.0, gt=0.0, le=1.0)
    presence_penalty: Float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: Float = Field(default=0.0, ge=-2.0, le=2.0)
    seed: Int | None = Field(default=None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    stop: str | list[str] | None = None
    stream: Bool = False
    stream_options: StreamOptions | None = None
    n: Int = Field(default=1, ge=1, le=MAX_CHOICES)
    user: str | None = Field(default=None, max_length=128)
    metadata: Metadata | None = None

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

    @property
    def listed(self) -> tuple[str, ...]:
        """Values that the client's schemas list and that look like personal data: they stay."""
        offered, schema = self.offered, self.schema_text
        if offered is None and schema is None:
            return ()
        schemas = [*(offered.tools if offered else []), json.loads(schema or "{}")]
        return tuple({value for value in listed_values(schemas) if may_hold(value)})

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Placeholders that stand in what no stage reads: they mean themselves."""
        return tuple(placeholders([*self.stops, self.schema_text or ""]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was accepted without effect, as a warning; nothing where all of it counts."""
        paths = self._without_effect()
        return (f"ignored: {', '.join(sorted(set(paths)))}",) if paths else ()

    def _without_effect(self) -> list[str]:
        nested = self.stream_options.ignored if self.stream_options else ()
        return [*self.ignored, *(f"stream_options.{name}" for name in nested)]


_Choice = Literal["none", "auto", "required"] | ChosenTool | None


class ChatRequest(GenerateRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Int | None = Field(default=None, ge=1, le=100_000)
    logprobs: Bool = False
    top_logprobs: Int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=64)
    tool_choice: _Choice = None
    parallel_tool_calls: Bool = True

    @field_validator("tools")
    @classmethod
    def _tools(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if len(json.dumps([tool.model_dump() for tool in tools or ()])) > MAX_SCHEMA:
            raise ValueError(f"the tools are over {MAX_SCHEMA} characters of JSON")
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _choice(cls, choice: _Choice, info: ValidationInfo) -> _Choice:
        tools: list[Tool] = info.data.get("tools") or []
        if not tools and choice not in (None, "none", "auto"):
            raise ValueError("it asks for a tool, but there are no tools")
        if isinstance(choice, ChosenTool):
            tools = [tool for tool in tools if tool.function.name == choice.function.name]
            if not tools:
                raise ValueError("it names a function that is not among the tools")
        if choice not in (None, "none", "auto"):
            for tool in tools:
                # What must be called has to fit its parameters: they bind like any schema.
                check_schema(tool.function.parameters or {})
        return choice

    @property
    def offered(self) -> Offer | None:
        """None also where `tool_choice` is `none`: the model then hears of no tools."""
        if self.tools is None or self.tool_choice == "none":
            return None
        choice = self.tool_choice or "auto"
        name = choice if isinstance(choice, str) else choice.function.name
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return Offer(tools, name, self.parallel_tool_calls)

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

    def _without_effect(self) -> list[str]:
        paths = super()._without_effect()
        for index, message in enumerate(self.messages):
            paths += [f"messages.{index}.{name}" for name in message.ignored]
            parts = message.content if isinstance(message.content, list) else []
            for place, part in enumerate(parts):
                paths += [f"messages.{index}.content.{place}.{name}" for name in part.ignored]
        return paths


class CompletionRequest(GenerateRequest):
    """`POST /v1/completions`: texts to be continued as they stand."""

    prompt: Texts
    logprobs: Int | None = Field(default=None, ge=0, le=5)

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 0 < len(texts) <= _MAX_PROMPTS or any(len(text) > MAX_TEXT for text in texts):
            raise ValueError(f"1 to {_MAX_PROMPTS} prompts of at most {MAX_TEXT} characters")
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


class EmbeddingsRequest(WireModel):
    """`POST /v1/embeddings`."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {"dimensions": (DIMENSIONS,)}
    model: str = Field(min_length=1, max_length=128)
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(default=None, max_length=128)

    @field_validator("input")
    @classmethod
    def _inputs(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 0 < len(texts) <= _MAX_INPUTS or any(len(text) > MAX_TEXT for text in texts):
            raise ValueError(f"1 to {_MAX_INPUTS} texts of at most {MAX_TEXT} characters")
        return value

    @property
    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input
