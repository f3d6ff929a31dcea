"""Normal form of text that comes from outside, shared by serving and by the data jobs.

What trains must look like what serves, so both call this one function.
"""

from __future__ import annotations

import re
import unicodedata

_SPACE = re.compile(r"\s+")
_MARKER = re.compile(r"<\|(?=[^|<>]{1,40}\|>)")


def normalise(text: str) -> str:
    """Composed, printable, single-spaced text in which no chat marker survives.

    A user who writes `<|assistant|>` must not open an assistant turn, so the marker is split.
    """
    composed = unicodedata.normalize("NFKC", text)
    printable = "".join(
        char if char.isprintable() else " "
        for char in composed
        if unicodedata.category(char) not in ("Cf", "Cs")
    )
    return _MARKER.sub("< |", _SPACE.sub(" ", printable).strip())
