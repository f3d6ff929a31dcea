"""Masking JSON documents by their values: never the serialised text.

Cutting serialised text breaks escapes and numbers. Here each string of a valid document is decoded,
masked and encoded again; everything around it, white space included, stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any

from cluster.governance.pii import may_hold
from cluster.governance.vault import Vault, mask

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
_KEY = re.compile(r"\s*:")
#: Characters of a key that tell what its value is.
_NAMED = 64


def is_document(text: str) -> bool:
    """Whether `text` is a JSON object or array."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def mask_text(
    text: str, vault: Vault, *, keep: Container[str] = (), numbers: bool = True, name: str = ""
) -> str:
    """`text` masked: by its values where it is a JSON document, else as it stands.

    Strings in `keep` stay. A number that is personal data becomes its placeholder, a string, unless
    `numbers` is false. A string that is a document itself, such as a tool call's arguments, is
    masked as one. `name` is what the text is called, such as its key.
    """
    if not may_hold(text):
        return text  # an escape that spells a value has digits
    if not is_document(text):
        return mask(text, vault, f"{name[-_NAMED:]}: " if name else "")
    return _Document(text, vault, keep, numbers).masked()


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
