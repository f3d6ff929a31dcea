"""US social security numbers, by the rules of the Social Security Administration."""

from __future__ import annotations

from cluster.governance.detectors.labels import Label
from cluster.governance.detectors.runs import Span


def is_ssn(span: Span, label: Label) -> bool:
    """Whether the span is one: grouped 3-2-4, or nine digits that are announced as one."""
    if len(span.digits) != 9 or "+" in span.prefix:
        return False
    area, group, serial = span.digits[:3], span.digits[3:5], span.digits[5:]
    if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
        return False
    if label is Label.PHONE and span.separators == (" ", " "):
        return False
    grouped = span.shape == (3, 2, 4) and span.separators in (("-", "-"), (" ", " "), (".", "."))
    return grouped or (label is Label.SSN and len(span.groups) == 1)
