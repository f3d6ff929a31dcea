"""Masking JSON documents by their values: never the serialised text.

Cutting serialised text breaks escapes and numbers. Here each string of a valid document is decoded,
masked and encoded again; everything around it, white space included, stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any

from cluster.governance.findings import LOOK_BEHIND
from cluster.governance.pii import may_hold
from cluster.governance.vault import Vault, mask

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
#: What may be the begin of an object with a key, or of an array that is not empty.
_OPENS = re.compile(r'\{\s*"|\[\s*(?:["{\[\d-]|null|true|false|NaN|Infinity)')
_DECODER = json.JSONDecoder(strict=False)
_MAX_FAILED = 16
_KEY = re.compile(r"\s*:")
#: Characters of a key that tell what its value is.
_NAMED = 64


def documents(text: str) -> list[tuple[int, int]]:
    """Start and end of the JSON objects and arrays in `text`, from left to right: the whole text,
    the content of a code fence, lines of a log. The search ends after `_MAX_FAILED` candidates that
    do not parse, which bounds its work."""
    found, position, failed = list[tuple[int, int]](), 0, 0
    while failed < _MAX_FAILED and (match := _OPENS.search(text, position)):
        try:
            _, end = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position, failed = match.start() + 1, failed + 1
            continue
        found.append((match.start(), end))
        position = end
    return found


def mask_text(
    text: str, vault: Vault, *, keep: Container[str] = (), numbers: bool = True, name: str = ""
) -> str:
    """`text` masked: the JSON documents in it by their values, the rest as it stands.

    Strings in `keep` stay. A number that is personal data becomes its placeholder, a string, unless
    `numbers` is false. A string that is a document itself, such as a tool call's arguments, is
    masked as one. `name` is what the text is called, such as its key.
    """
    if not may_hold(text):
        return text  # an escape that spells a value has digits
    context = f"{name[-_NAMED:]}: " if name else ""
    parts, position = list[str](), 0
    for start, end in documents(text):
        parts.append(mask(text[position:start], vault, context))
        parts.append(_Document(text[start:end], vault, keep, numbers).masked())
        context, position = (context + text[position:start])[-LOOK_BEHIND:], end
    return "".join([*parts, mask(text[position:], vault, context)])


class _Document:
    """One valid JSON document, token by token."""

    def __init__(self, text: str, vault: Vault, keep: Container[str], numbers: bool) -> None:
        self._text, self._vault = text, vault
        self._keep, self._numbers = keep, numbers
        self._name = ""

    def masked(self) -> str:
        return _TOKEN.sub(self._token, self._text)

    def _token(self, match: re.Match[str]) -> str:
        token = match.group()
        self._vault.tick()
        if token[0] != '"':
            return self._number(token)
        value: Any = json.loads(token, strict=False)
        if _KEY.match(self._text, match.end()):
            self._name = value
            masked = value if value in self._keep else mask(value, self._vault)
        elif value in self._keep:
            return token
        else:
            masked = mask_text(
                value, self._vault, keep=self._keep, numbers=self._numbers, name=self._name
            )
        return token if masked == value else json.dumps(masked, ensure_ascii=False)

    def _number(self, token: str) -> str:
        masked = mask(token, self._vault, f"{self._name[-_NAMED:]}: ") if self._numbers else token
        return token if masked == token else json.dumps(masked)
