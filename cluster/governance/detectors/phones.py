"""Telephone numbers: international ones by the ITU's plans, national ones by shape and by label.

Google's numbering plans (`phonenumbers`) decide what can be a number. Digits alone never do: eight
of them are a number in a dozen countries and an order in all.
"""

from __future__ import annotations

import re
from functools import lru_cache

import phonenumbers

from cluster.governance.detectors.labels import Label, phone_after
from cluster.governance.detectors.runs import Span

#: Whose national numbers are known without a label: what they dial begins unlike a counter.
_BARE_REGIONS = ("US", "IN", "GB", "DE", "FR", "AU", "JP", "IT", "NL", "CN")
_GROUPED_REGIONS = ("IN", "CN", "BR", "ES", "MX", "IT", "PT", "CH", "PL", "SE", "NO", "DK")
_EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?\d{1,6}(?!\d)", re.IGNORECASE)
#: A social security number that is none, and octets that are no address.
_NOT_PHONES = frozenset(
    {(3, 2, 4), (3, 3, 1, 3), (3, 3, 3, 1), (3, 3, 3, 2), (3, 3, 2, 3), (3, 2, 3, 3)}
)
#: Digits in a row, and the largest integers.
_CONSTANTS = frozenset({"0123456789", "1234567890", "2147483647", "2147483648", "4294967295"})
#: yyyymmddhh
_HOUR = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])")
_YEAR = re.compile(r"(?:19|20)\d{2}")


def phone_end(span: Span, label: Label, *, direct: bool) -> int | None:
    """Where the telephone number that is `span` ends, its extension included; None where it is
    none. `label` announces it, directly or from further away."""
    if not 7 <= len(span.digits) <= 15:
        return None
    extended = _EXTENSION.match(span.text, span.end)
    if _is_phone(span, label, direct=direct, extended=extended is not None):
        return extended.end() if extended else span.end
    return None


def _is_phone(span: Span, label: Label, *, direct: bool, extended: bool) -> bool:
    if "+" in span.prefix:
        return label is Label.PHONE or _possible("+" + span.digits)
    if direct and label in (Label.IDENTIFIER, Label.VERSION, Label.CARD, Label.SSN):
        return False
    if span.digits.startswith(("00", "011")) and _international(span):
        return True
    bare = len(span.groups) == 1
    if bare and direct and label is Label.COUNT:
        return False
    if _bare(span.digits) if bare else _grouped(span):
        return True
    announced = label is Label.PHONE or extended or phone_after(span.text, span.end)
    return announced and _plausible(span)


def _international(span: Span) -> bool:
    dialled = "+" + span.digits.removeprefix("00" if span.digits.startswith("00") else "011")
    return _valid(dialled, None) if len(span.groups) == 1 else _possible(dialled)


def _bare(digits: str) -> bool:
    """One group of digits that nothing announces."""
    if len(digits) not in (10, 11) or digits in _CONSTANTS or _HOUR.fullmatch(digits):
        return False
    if digits[0] in "0":
        return any(_valid(digits, region) for region in _BARE_REGIONS)
    if len(digits) == 11:
        return (digits[0] == "1" and _valid(digits, "US")) or (
            re.match(r"1[3-9]", digits) is not None and _valid(digits, "CN")
        )
    return _valid(digits, "US") or (digits[0] in "6789" and _valid(digits, "IN"))


def _grouped(span: Span) -> bool:
    """Groups that nothing announces."""
    shape, digits = span.shape, span.digits
    if shape[-3:] == (3, 3, 4) and digits[-10] in "23456789" and len(digits) <= 11:
        return len(digits) == 10 or digits[0] == "1"  # North America's
    if span.prefix == "(":
        return 8 <= len(digits) <= 12 and not _YEAR.fullmatch(digits[: shape[0]])
    if len(shape) == 4 and set(span.separators) == {"."} and max(shape) <= 3:
        return False  # octets
    if {" ", "."} <= set(span.separators):
        return False  # decimals in a row
    if _money(span) or _dated(span) or shape in _NOT_PHONES or not _separate(span):
        return False
    if len(shape) != 5 and all(size == 2 for size in shape):
        return False
    if digits[0] == "0" and digits[1] != "0" and shape[0] >= 2 and 9 <= len(digits) <= 12:
        return "." not in span.separators or len(shape) >= 4 or shape[0] >= 3
    if len(shape) == 2 and shape != (5, 5):
        return False
    return 9 <= len(digits) <= 11 and any(_valid(digits, one) for one in _GROUPED_REGIONS)


def _plausible(span: Span) -> bool:
    """What may be a number once something says that it is one."""
    if _YEAR.fullmatch(span.digits[: span.shape[0]]) or len(span.digits) > 13:
        return False
    if len(span.groups) == 2 and span.separators == (".",):
        return span.shape == (3, 4)
    return span.shape[0] <= 5 or len(span.groups) == 1


def _separate(span: Span) -> bool:
    """Whether the groups are not cut out of a longer row of groups like them."""
    return span.whole or " " not in span.separators


def _money(span: Span) -> bool:
    """Whether the groups are those of thousands: `1 234 567`."""
    return span.shape[0] <= 3 and all(size == 3 for size in span.shape[1:])


def _dated(span: Span) -> bool:
    """Whether a group between hyphens or slashes is a year: `INV 2024-0042-001`."""
    if set(span.separators) & {" ", "."} or len(span.groups) < 2:
        return False
    return any(_YEAR.fullmatch(span.text[start:end]) for start, end in span.groups[:2])


@lru_cache(maxsize=4096)
def _possible(number: str) -> bool:
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(number))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=4096)
def _valid(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
