"""Values of response headers."""

from __future__ import annotations

WARNINGS = "x-headrace-warnings"
_MAX = 512


def header_value(text: str) -> str:
    """`text` as a header may carry it: bounded, printable ASCII."""
    return "".join(c if c.isprintable() and c < "\x80" else "?" for c in text)[:_MAX]
