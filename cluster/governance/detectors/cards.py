"""Payment card numbers (ISO/IEC 7812): issuer prefix, length, grouping, Luhn's check digit."""

from __future__ import annotations

import re

from cluster.governance.detectors.labels import Label
from cluster.governance.detectors.runs import Span

#: Issuer prefixes and the lengths they issue.
_ISSUERS: tuple[tuple[re.Pattern[str], frozenset[int]], ...] = tuple(
    (re.compile(prefix), frozenset(lengths))
    for prefix, lengths in (
        (r"4", (13, 16, 19)),
        (r"5[1-5]|2(?:2(?:2[1-9]|[3-9])|[3-6]|7(?:[01]|20))", (16,)),
        (r"3[47]", (15,)),
        (r"3(?:0[0-5]|095|[689])", (14, 16, 17, 18, 19)),
        (r"6(?:011|4[4-9]|5)", (16, 17, 18, 19)),
        (r"35(?:2[89]|[3-8])", (16, 17, 18, 19)),
        (r"62|81", (16, 17, 18, 19)),
        (r"5[06-8]|6(?:304|759|76[1-3]|0|3|7)", (16, 17, 18, 19)),
        (r"220[0-4]|9792|508|82", (16,)),
    )
)
_SEPARATORS = frozenset({" ", "  ", "   ", "-", ".", " - ", "/", "_", "·"})
#: Lengths that only a word such as "card" makes one, for other numbers have them too.
_ANNOUNCED = frozenset({12, 13})
_MAESTRO = re.compile(r"5[06-8]|6(?:304|759|76[1-3])")
_NOT_CARDS = re.compile(
    r"(?:isbn|ean|upc|gtin|barcode|tracking|imei|iccid|imsi|doi|timestamp|epoch)"
    r"(?:[\s\"':=#_.\-]|number|no|nr|id|code|is|1[03])*\Z",
    re.IGNORECASE,
)


def is_card(span: Span, label: Label) -> bool:
    """Whether the span's digits are a card number as people write one."""
    digits = span.digits
    if not 12 <= len(digits) <= 19 or not _grouped(span) or not luhn(digits):
        return False
    if len(set(digits)) == 1:
        return False
    if len(digits) in _ANNOUNCED:
        announced = label is Label.CARD or (span.whole and len(span.groups) >= 3)
        known = digits[0] == "4" if len(digits) == 13 else bool(_MAESTRO.match(digits))
        return announced and known
    if _NOT_CARDS.search(span.text[max(0, span.start - 40) : span.start]):
        return False
    return any(prefix.match(digits) and len(digits) in sizes for prefix, sizes in _ISSUERS)


def _grouped(span: Span) -> bool:
    """Whether the grouping is one: a decimal has two groups, a sum of money groups of three."""
    shape = span.shape
    if len(shape) == 1:
        return True
    if "." in span.separators and (len(shape) < 3 or len(set(span.separators)) > 1):
        return False
    blocks = all(4 <= size <= 6 for size in shape[:-1]) and 1 <= shape[-1] <= 6
    known = blocks or shape in ((8, 8), (6, 13), (6, 10), (7, 8))
    return known and _SEPARATORS.issuperset(span.separators)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
