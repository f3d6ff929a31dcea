"""Placeholders: masking values, and putting a request's own values back.

A placeholder is the name of a value within one request and its answer. The request's vault alone
restores: a name that is not in it is text like any other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from cluster.errors import UserError
from cluster.governance.findings import KINDS, Tick, unlimited
from cluster.governance.pii import find

#: Distinct values of one request; its placeholders have room for more.
MAX_VALUES = 1000
PLACEHOLDER = re.compile(r"\[(?:" + "|".join(KINDS) + r")_\d{1,4}\]")
_ESCAPED_BRACKET = re.compile(r"(?<!\\)\\+u005[bB]")
#: Longest placeholder a stream has to hold back for: "[EMAIL_9999]".
MAX_PLACEHOLDER = max(map(len, KINDS)) + len("[_9999]")


def placeholders(texts: Iterable[str]) -> set[str]:
    """The placeholders that stand in `texts`, issued by a vault or written by hand; JSON may spell
    their bracket as an escape."""
    found = set[str]()
    for text in texts:
        if "\\" in text:
            found.update(PLACEHOLDER.findall(_ESCAPED_BRACKET.sub("[", text)))
        elif "[" in text:
            found.update(PLACEHOLDER.findall(text))
    return found


class TooManyValues(UserError):
    """A text holds more distinct personal values than one request may."""


class Vault:
    """The values that were masked, by placeholder; a look-up takes constant time."""

    def __init__(self, taken: Iterable[str] = (), tick: Tick = unlimited) -> None:
        """Placeholders in `taken` are never issued: they have a meaning already. `tick` is called
        while text is masked, and may raise `OutOfTime`."""
        self.tick = tick
        self.values: dict[str, str] = {}
        """Placeholder to the original text."""
        self._taken = set(taken)
        self._names: dict[tuple[str, str], str] = {}
        self._last = Counter[str]()

    def placeholder(self, kind: str, value: str) -> str:
        """The placeholder of `value`; the same value always gets the same one.

        Raises:
            TooManyValues: it would be one more than `MAX_VALUES`.
        """
        known = self._names.get((kind, value))
        if known is not None:
            return known
        if len(self.values) >= MAX_VALUES:
            raise TooManyValues(f"over {MAX_VALUES} different personal values in one request")
        name = ""
        while not name or name in self._taken:
            self._last[kind] += 1
            name = f"[{kind}_{self._last[kind]}]"
        self._names[kind, value] = name
        self.values[name] = value
        return name

    def counts(self) -> dict[str, int]:
        """How many distinct values of each kind are held."""
        return dict(Counter(kind for kind, _ in self._names))


def mask(text: str, vault: Vault, context: str = "") -> str:
    """`text` with each personal value replaced by a placeholder kept in `vault`.

    `context` is what stands before it or names it; see `cluster.governance.pii.find`.
    """
    found = find(text, context, vault.tick)
    if not found:
        return text
    parts, position = [], 0
    for one in found:
        value = text[one.start : one.end]
        parts += [text[position : one.start], vault.placeholder(one.kind, value)]
        position = one.end
    return "".join([*parts, text[position:]])


def restore(text: str, values: Mapping[str, str]) -> str:
    """`text` with the placeholders in `values` replaced by what they stand for.

    Values hold nothing that JSON escapes (`cluster.governance.findings.Detector`), so JSON text
    stays what it is.
    """
    if not values or "[" not in text:
        return text
    return PLACEHOLDER.sub(lambda match: values.get(match.group(), match.group()), text)
