"""Chat messages and tools in OpenAI's wire format, as strict, bounded models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from serve_app.gateway.leniency import WireModel
from serve_app.tools import ToolCall, forced_schema, read

MAX_TEXT = 200_000
MAX_SCHEMA = 16_384


@dataclass(frozen=True)
class Offer:
    """Tools in OpenAI's shape, and which of them is to be called: a name, `auto` or `required`."""

    tools: list[dict[str, Any]]
    choice: str
    parallel: bool = True
    """Whether one answer may call several."""

    @property
    def schema(self) -> str | None:
        """What an answer that must be a call has to fit."""
        return forced_schema(self.tools, self.choice)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """The words of an answer, and its calls."""
        names = {tool["function"]["name"] for tool in self.tools}
        words, calls = read(text, names, forced=self.choice != "auto")
        return words, calls if self.parallel else calls[:1]


class TextPart(WireModel):
    """One text part of a message's content."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"cache_control", "annotations", "prompt_cache_breakpoint"}
    )
    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)

    @model_validator(mode="before")
    @classmethod
    def _refusal(cls, data: Any) -> Any:
        """A part of an earlier answer that refused: its words."""
        if isinstance(data, dict) and data.get("type") == "refusal":
            return {**data, "type": "text", "text": data.get("refusal"), "refusal": None}
        return data

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "text":
            message = "parts of type {type} are not supported; send text"
            raise PydanticCustomError("unsupported_part", message, {"type": repr(value[:32])})
        return value


def _branch(value: Any) -> str:
    return "as parts" if isinstance(value, list) else "as text"


Content = Annotated[
    Annotated[str, Tag("as text")] | Annotated[list[TextPart], Tag("as parts")],
    Discriminator(_branch),
]


class CalledFunction(WireModel):
    """Which function an earlier answer called, and with what; clients add it parsed."""

    LENIENT: ClassVar[bool] = True
    name: str = Field(max_length=64)
    arguments: str = Field(max_length=MAX_SCHEMA)


class EarlierCall(WireModel):
    """A tool call of an earlier answer."""

    LENIENT: ClassVar[bool] = True
    id: str = Field(max_length=64)
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(WireModel):
    """A message; content may be text or a list of text parts."""

    LENIENT: ClassVar[bool] = True
    REFUSED: ClassVar[frozenset[str]] = frozenset({"audio", "function_call"})
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: list[EarlierCall] | None = Field(default=None, max_length=32)
    tool_call_id: str | None = Field(default=None, max_length=64)

    @field_validator("content")
    @classmethod
    def _bounded(cls, value: str | list[TextPart] | None) -> str | list[TextPart] | None:
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"content is over {MAX_TEXT} characters")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        said = self.tool_calls or "refusal" in self.ignored
        if self.content is None and not (self.role == "assistant" and said):
            raise ValueError("a message needs content; only an assistant's tool_calls go without")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with the role tool, and only with it")
        return self

    def plain(self) -> dict[str, str]:
        """The message as the stages use it: texts only, so that each of them can be masked."""
        content = self.content or ""
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        plain = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            plain["tool_calls"] = json.dumps(
                [call.model_dump() for call in self.tool_calls], ensure_ascii=False
            )
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        return plain


class Function(WireModel):
    """A function the model may call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"strict", "cache_control"})
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=4096)
    parameters: dict[str, Any] | None = None


class Tool(WireModel):
    """A tool; functions are the one kind that is called here."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    type: Literal["function"]
    function: Function


class ChosenFunction(WireModel):
    """The name of the function that must be called."""

    name: str = Field(max_length=64)


class ChosenTool(WireModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction
