"""Folding look-alike characters to ASCII, for matching only: positions stay the same."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache


@cache
def _table() -> dict[int, str]:
    """Digits of every script, full-width ASCII, and the dashes and spaces used inside numbers."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for code in range(0x80, sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Nd":
            table[code] = str(unicodedata.digit(chr(code)))
    table |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212, 0xFE63), "-")
    spaces = (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
    table |= dict.fromkeys(spaces, " ")
    # Full-width forms of quote and backslash would let a value contain what JSON escapes.
    table |= {0xFF02: "\uff02", 0xFF3C: "\uff3c"}
    return table


#: Line ends and tabs as JSON and code write them: white space, though the text is not decoded.
_ESCAPED_SPACE = re.compile(r"\\[nrtbf]")


def fold(text: str) -> str:
    """`text` for matching, of the same length; `text` itself where nothing looks alike."""
    folded = text if text.isascii() else text.translate(_table())
    # White space that stands inside no value, so that no value holds an escape.
    return _ESCAPED_SPACE.sub("\x1f\n", folded) if "\\" in folded else folded
