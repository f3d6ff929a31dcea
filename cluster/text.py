"""Normal form of text that comes from outside, shared by serving and by the data jobs.

What trains must look like what serves, so both call this one function. It keeps what carries
meaning: lines, indentation, superscripts, the joiners of Indic and Arabic scripts and of emoji.
Stronger forms serve for matching only (`cluster.governance.folding`).
"""

from __future__ import annotations

import re
import unicodedata

#: Unicode's other line ends, as one.
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ZWNJ, _ZWJ, _FLAG = "\u200c", "\u200d", "\U0001f3f4"
#: Marks of direction that right-to-left text is written with; the overrides are not among them.
_DIRECTION = frozenset("\u061c\u200e\u200f\u2066\u2067\u2068\u2069")
_TAGS = range(0xE0020, 0xE0080)
#: `<|`, as some tokenizers spell it and as some normalisers make it out of full-width signs.
_MARKER = re.compile(
    "([<\uff1c])([\u200c\u200d\u2066-\u2069]*[|\uff5c])(?=[^\\s|\uff5c<>\uff1c\uff1e][^|\uff5c<>\uff1c\uff1e]{0,39}[|\uff5c][>\uff1e])"
)
_ZWSP = "\u200b"
#: Format characters that are signs to see: Arabic and Syriac number marks, Mongolian's separator.
_VISIBLE = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2\u180e")
#: Thai and Lao, Myanmar, Khmer.
_UNSPACED = (range(0x0E00, 0x0F00), range(0x1000, 0x10A0), range(0x1780, 0x1800))
_MOST_MARKS = 30
_PLAIN = re.compile(r"[\t\n -~]*")


def normalise(text: str) -> str:
    """Composed text (NFC) without control characters, in which no chat marker survives.

    A user who writes `<|assistant|>` must not open an assistant turn, so the marker is split.
    """
    if _PLAIN.fullmatch(text):
        return split_markers(text)
    lines = _LINE_END.sub("\n", text)
    # First: what is taken out may have parted two runs of marks.
    kept = "".join(_kept(lines, index, char) for index, char in enumerate(lines))
    return split_markers(_composed(kept))


def _composed(text: str) -> str:
    """The composed form, whose own runs of marks are bounded as well: composing may decompose."""
    while (composed := unicodedata.normalize("NFC", _stream_safe(text))) != text:
        text = composed
    return text


def _stream_safe(text: str) -> str:
    """`text` with at most `_MOST_MARKS` combining marks in a row.

    Composing sorts each run of them, in time that grows with its square. Unicode's stream-safe form
    (UAX #15) has 30; no writing system comes near.
    """
    run, kept = 0, list[str]()
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run <= _MOST_MARKS:
            kept.append(char)
    return text if len(kept) == len(text) else "".join(kept)


def split_markers(text: str) -> str:
    """`text` with a space inside each chat marker: it reads the same and is no control token."""
    return _MARKER.sub(r"\1 \2", text)


def _kept(text: str, index: int, char: str) -> str:
    """What stays of `text[index]`, which is `char`."""
    if char.isprintable() or char in "\n\t":
        return char
    category = unicodedata.category(char)
    if category == "Cc":
        return " "
    if category == "Cs":
        return ""
    if category != "Cf" or char in _DIRECTION:
        return char  # wide spaces, private use, and what is newer than this Python's Unicode
    if char in _VISIBLE or (ord(char) in _TAGS and _in_flag(text, index)):
        return char
    around = text[max(0, index - 1) : index] + text[index + 1 : index + 2]
    if char in (_ZWNJ, _ZWJ):
        return char if any(map(_joins, around)) else ""
    # Scripts without spaces mark where a line may break.
    return char if char == _ZWSP and any(map(_unspaced, around)) else ""


def _joins(beside: str) -> bool:
    """Whether a joiner beside this can mean anything: among ASCII it only hides text."""
    return not beside.isascii() and unicodedata.category(beside)[0] in "LMNS"


def _unspaced(beside: str) -> bool:
    return any(ord(beside) in script for script in _UNSPACED)


def _in_flag(text: str, index: int) -> bool:
    """Whether a tag character is part of a flag, such as Scotland's: elsewhere it is invisible."""
    start = index
    while start > 0 and index - start < 8 and ord(text[start - 1]) in _TAGS:
        start -= 1
    return start > 0 and text[start - 1] == _FLAG
