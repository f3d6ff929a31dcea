"""Structured personal data: finding it, masking it, restoring it.

Owns the patterns and the placeholder format shared by serving (mask before the model sees a
request), by the trace log (masked text is what is kept) and by the data jobs (masked text is what
trains). It must never store a value anywhere but in the `Vault` its caller holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

#: Order matters: an earlier pattern owns the characters it matched.
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "EMAIL",
        re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}"),
    ),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")),
    ("CARD", re.compile(r"\b\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{1,7}\b|\b\d{13,19}\b")),
    ("SSN", re.compile(r"\b\d{3}-\d{2}-\d{4}\b|\b\d{3} \d{2} \d{4}\b")),
    ("IP", re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")),
    (
        "PHONE",
        re.compile(
            r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?"
            r"(?:\(\d{3}\) ?\d{3}[ .-]?\d{4}|\d{3}[ .-]\d{3}[ .-]\d{4}|\d{10,12})(?![\w])"
        ),
    ),
)
KINDS = tuple(kind for kind, _ in PATTERNS)
PLACEHOLDER = re.compile(r"\[(?:" + "|".join(KINDS) + r")_\d{1,4}\]")
#: Longest placeholder a stream has to hold back for: "[EMAIL_9999]".
MAX_PLACEHOLDER = max(len(kind) for kind in KINDS) + len("[_9999]")


@dataclass
class Vault:
    """The values one request had masked, so that its own answer can carry them back."""

    values: dict[str, str] = field(default_factory=dict)
    """Placeholder to the original text."""

    def placeholder(self, kind: str, value: str) -> str:
        """The placeholder of `value`; the same value always gets the same one."""
        for known, original in self.values.items():
            if original == value and known.startswith(f"[{kind}_"):
                return known
        number = 1 + sum(known.startswith(f"[{kind}_") for known in self.values)
        name = f"[{kind}_{number}]"
        self.values[name] = value
        return name

    def counts(self) -> dict[str, int]:
        """How many distinct values of each kind are held."""
        result: dict[str, int] = {}
        for name in self.values:
            kind = name[1:].rpartition("_")[0]
            result[kind] = result.get(kind, 0) + 1
        return result


def mask(text: str, vault: Vault) -> str:
    """`text` with each structured personal value replaced by a placeholder kept in `vault`."""
    for kind, pattern in PATTERNS:
        text = pattern.sub(partial(_placeholder, kind, vault), text)
    return text


def _placeholder(kind: str, vault: Vault, match: re.Match[str]) -> str:
    return vault.placeholder(kind, match.group())


def restore(text: str, values: Mapping[str, str]) -> str:
    """`text` with the placeholders in `values` replaced by what they stand for."""
    if not values:
        return text
    return PLACEHOLDER.sub(lambda match: values.get(match.group(), match.group()), text)
