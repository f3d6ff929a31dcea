"""Tools a client offers the model: how they are shown, forced, and read out of an answer.

Calls are written the way Hermes models and those after them do, `<tool_call>{"name": ...,
"arguments": {...}}</tool_call>`. A chat template that knows tools shows them itself; for one that
does not, they become a system message. Pure: knows no engine and no HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.text import split_markers

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_TAGS = re.compile(f"({OPEN}|{CLOSE})")
#: Keywords of a schema whose strings are words for a reader; other strings are names and values
#: that an answer has to repeat to the letter.
_WORDS = frozenset({"description", "title", "examples", "default", "$comment"})
#: Keywords that list the values an answer may have.
_LISTS = frozenset({"enum", "const"})
_HOW = (
    "You may call these functions:\n{tools}\nTo call one, answer with "
    '<tool_call>{{"name": ..., "arguments": ...}}</tool_call> and nothing else.'
)


@dataclass(frozen=True)
class ToolCall:
    """A call the model made; `arguments` is JSON text, as OpenAI has it."""

    name: str
    arguments: str


def forced_schema(tools: list[dict[str, Any]], choice: str) -> str | None:
    """The JSON Schema an answer must fit, as JSON text: `choice` is a function's name or a mode.

    None where the model may answer in words: `auto` and `none`.
    """
    if choice in ("auto", "none"):
        return None
    functions = [tool["function"] for tool in tools]
    chosen = [f for f in functions if choice in ("required", f["name"])]
    variants = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": _rebased(
                    function.get("parameters") or {"type": "object"},
                    ("#" if len(chosen) == 1 else f"#/anyOf/{index}") + "/properties/arguments",
                ),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, function in enumerate(chosen)
    ]
    return json.dumps(variants[0] if len(variants) == 1 else {"anyOf": variants})


def _rebased(schema: Any, root: str) -> Any:
    """A copy of a schema that stands at `root` of another: its references point there."""
    if isinstance(schema, list):
        return [_rebased(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + item[1:]
        if key == "$ref" and isinstance(item, str) and item.startswith("#")
        else _rebased(item, root)
        for key, item in schema.items()
    }


def may_be_call(text: str) -> bool:
    """Whether `text`, the beginning of an answer, may turn out to be a call."""
    start = text.lstrip()[: len(OPEN)]
    return OPEN.startswith(start)


def read(text: str, names: set[str], *, forced: bool) -> tuple[str, list[ToolCall]]:
    """The words of an answer and its calls; what calls no function in `names` stays words."""
    if forced:
        call = _call(text, names)
        return ("", [call]) if call else (text, [])
    words, calls, rest = [], list[ToolCall](), text
    while OPEN in rest:
        before, _, after = rest.partition(OPEN)
        body, closed, tail = after.partition(CLOSE)
        call = _call(body, names)
        if call is None:
            words.append(rest[: len(rest) - len(tail)] if closed else rest)
        else:
            words.append(before)
            calls.append(call)
        rest = tail
    words.append(rest)
    return ("".join(words).strip() if calls else text), calls


def _call(text: str, names: set[str]) -> ToolCall | None:
    try:
        found = json.loads(text)
        name, arguments = found["name"], found.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    try:
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except ValueError:  # a number beyond all bounds, which JSON cannot say
        return None


def segments(text: str) -> list[str]:
    """An answer cut at the tags of its calls: words, tags, and the JSON between them."""
    return _TAGS.split(text) if OPEN in text or CLOSE in text else [text]


def readable(offered: str, change: Callable[[str], str]) -> str:
    """Tools as JSON text, with `change` applied to every text a model reads as words.

    Chat markers are split everywhere: what a tool is called opens no turn either.
    """
    return json.dumps(_readable(json.loads(offered), change, words=False), ensure_ascii=False)


def _readable(value: Any, change: Callable[[str], str], *, words: bool) -> Any:
    if isinstance(value, str):
        return split_markers(change(value) if words else value)
    if isinstance(value, list):
        return [_readable(item, change, words=words) for item in value]
    if isinstance(value, dict):
        return {
            split_markers(key): _readable(
                item,
                change,
                # `{"properties": {"title": {...}}}` names a property.
                words=words or (key in _WORDS and not isinstance(item, dict)),
            )
            for key, item in value.items()
        }
    return value


def listed_values(schema: Any, *, listed: bool = False) -> Iterator[str]:
    """The strings that a schema, or tools with schemas, list as possible values."""
    if isinstance(schema, str):
        if listed:
            yield schema
    elif isinstance(schema, list):
        for item in schema:
            yield from listed_values(item, listed=listed)
    elif isinstance(schema, dict):
        for key, item in schema.items():
            if key == "properties" and isinstance(item, dict):
                yield from item
            yield from listed_values(item, listed=listed or key in _LISTS)


def structured(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Messages as a template that knows tools reads them: earlier calls as objects, not as text."""
    return [
        {**message, "tool_calls": json.loads(message["tool_calls"])}
        if "tool_calls" in message
        else dict(message)
        for message in messages
    ]


def in_words(messages: list[dict[str, str]], tools: str | None) -> list[dict[str, str]]:
    """Messages for a template that knows neither tools nor their results."""
    plain = [{"role": "system", "content": _HOW.format(tools=tools)}] if tools else []
    for message in messages:
        content = message["content"]
        if message["role"] == "tool":
            plain.append({"role": "user", "content": f"<tool_response>{content}</tool_response>"})
            continue
        for call in json.loads(message.get("tool_calls", "[]")):
            content += f"{OPEN}{json.dumps(call['function'])}{CLOSE}"
        plain.append({"role": message["role"], "content": content})
    return plain
