"""IBANs, by their country's length and check digits (ISO 13616)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schwifty import IBAN
from schwifty.exceptions import SchwiftyException

from cluster.governance.findings import Finding

#: The longest IBAN there may be, and the separators of one that is written in groups of four.
MAX_IBAN, MAX_WRITTEN = 34, 34 + 9
_START = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=[Ii][Bb][Aa][Nn]))[A-Za-z]{2} ?\d{2}(?=[ .-]?[A-Za-z0-9])"
)
_CHARACTER = re.compile(r"[ .-]?[A-Za-z0-9]")


def find_ibans(text: str) -> Iterator[Finding]:
    """IBANs in any case, in groups or not; words may follow after a space."""
    end = 0
    for match in _START.finditer(text):
        if match.start() < end:
            continue
        found = _iban_at(text, match.start())
        if found:
            end = found
            yield Finding(match.start(), end, "IBAN")


def _iban_at(text: str, start: int) -> int | None:
    """Where the IBAN that begins at `start` ends; None where there is none."""
    length = _length(text[start : start + 2].upper())
    value, end = "", start
    while len(value) < length and (match := _CHARACTER.match(text, end)):
        # The first separator fixes nothing: groups may be of any size and mixed.
        value += match.group()[-1]
        end = match.end()
    if length == 0 or len(value) < length or _continues(text, end):
        return None
    try:
        IBAN(value)
    except SchwiftyException:
        return None
    return end


def _length(country: str) -> int:
    from schwifty.registry import get_iban_spec

    try:
        return int(get_iban_spec(country).iban_length)
    except SchwiftyException:
        return 0


def _continues(text: str, end: int) -> bool:
    return end < len(text) and text[end].isascii() and text[end].isalnum()


def iban_across(text: str, edge: int) -> int | None:
    """Where an IBAN may begin that goes on past `edge`, complete or not; None where none does.

    Words may be part of one: a text must not be cut between its groups.
    """
    for match in _START.finditer(text, max(0, edge - MAX_WRITTEN), edge):
        country = text[match.start() : match.start() + 2].upper()
        if _length(country) and re.fullmatch(r"[A-Za-z0-9 .-]*", text[match.start() : edge]):
            return match.start()
    return None
