"""Finding structured personal data: one pass that runs the detectors in order of precedence."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

from cluster.governance.detectors.accounts import find_ibans
from cluster.governance.detectors.cards import is_card
from cluster.governance.detectors.emails import find_emails
from cluster.governance.detectors.labels import Label, label_before
from cluster.governance.detectors.network import find_addresses
from cluster.governance.detectors.phones import phone_end
from cluster.governance.detectors.runs import Span, runs, spans
from cluster.governance.detectors.ssn import is_ssn
from cluster.governance.detectors.surroundings import in_identifier, in_path, word_before
from cluster.governance.findings import Detector, Finding, Free, Hints, Tick, unlimited
from cluster.governance.folding import fold

#: Fewer digits are no value of any kind: the shortest IP address has four, or colons.
_FEW_DIGITS = 4
_FEW_IN_NUMBER = 7
_DIGIT = re.compile(r"\d")


def find(text: str, context: str = "", tick: Tick = unlimited) -> list[Finding]:
    """The personal values in `text`, from left to right, none overlapping another.

    `context` is what stands before `text` in the same message, or names it, such as the key of a
    JSON value: it may hold labels, and nothing in it is reported. `tick` is called now and then: it
    may raise `OutOfTime`.
    """
    if not may_hold(text):
        return []
    folded = fold(context + text)
    found, hints = _Findings(), Hints.of(folded)
    for detector in DETECTORS:
        if detector.applies(hints):
            found.add(detector.find(folded, found.free, tick))
    skipped = len(context)
    return [
        Finding(one.start - skipped, one.end - skipped, one.kind)
        for one in found.all
        if one.start >= skipped
    ]


def may_hold(text: str) -> bool:
    """Whether `text` can hold a value at all; most messages cannot, and cost next to nothing."""
    return "@" in text or _DIGIT.search(text) is not None or "\uff20" in text


class _Findings:
    """Findings in order; one that overlaps an earlier one is dropped."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, findings: Iterable[Finding]) -> None:
        for one in findings:
            if self.free(one.start, one.end):
                insort(self.all, one)

    def free(self, start: int, end: int) -> bool:
        """Whether no finding overlaps `start` to `end`; a look at the neighbours tells."""
        after = bisect_left(self.all, start, key=attrgetter("start"))
        if after < len(self.all) and self.all[after].start < end:
            return False
        return after == 0 or self.all[after - 1].end <= start


class Emails:
    """E-mail addresses."""

    def applies(self, hints: Hints) -> bool:
        """An address has an at sign."""
        return hints.at_sign

    def find(self, text: str, free: Free, tick: Tick) -> Iterator[Finding]:
        """See `Detector`."""
        return find_emails(text)


class Ibans:
    """International bank account numbers."""

    def applies(self, hints: Hints) -> bool:
        """Of the digits, two are check digits."""
        return hints.digits >= _FEW_DIGITS

    def find(self, text: str, free: Free, tick: Tick) -> Iterator[Finding]:
        """See `Detector`."""
        return find_ibans(text)


class Addresses:
    """IP addresses of either version."""

    def applies(self, hints: Hints) -> bool:
        """The shortest has four digits, or colons."""
        return hints.digits >= _FEW_DIGITS or hints.colons > 1

    def find(self, text: str, free: Free, tick: Tick) -> Iterator[Finding]:
        """See `Detector`."""
        return find_addresses(text)


class Numbers:
    """Card, social security and telephone numbers: each run of digits is classified by itself."""

    def applies(self, hints: Hints) -> bool:
        """The shortest is a local telephone number."""
        return hints.digits >= _FEW_IN_NUMBER

    def find(self, text: str, free: Free, tick: Tick) -> Iterator[Finding]:
        """See `Detector`."""
        for run in runs(text):
            tick()
            if sum(end - start for start, end in run) >= _FEW_IN_NUMBER:
                yield from _in_run(text, run, free, tick)


#: In order of precedence: a finding that overlaps one of an earlier detector is dropped.
DETECTORS: tuple[Detector, ...] = (Emails(), Ibans(), Addresses(), Numbers())


def _in_run(text: str, run: list[tuple[int, int]], free: Free, tick: Tick) -> Iterator[Finding]:
    position, labelled = 0, -1
    label, direct = Label.NONE, False
    for span in spans(text, run):
        tick()
        if span.start < position or not free(span.start, span.end):
            continue
        if span.opens != labelled:
            labelled, (label, direct) = span.opens, label_before(text, span.opens)
        number = _number(span, label, direct=direct)
        if number is not None:
            position = number.end
            yield number


def _number(span: Span, label: Label, *, direct: bool) -> Finding | None:
    text, start = span.text, span.start
    if is_card(span, label):
        found = Finding(start, span.end, "CARD")
        # `visa4111...` is one; check digits say more than the letters before them.
        joined = in_identifier(text, start, span.end)
        if joined and (text[span.end : span.end + 1].isalpha() or not word_before(text, start)):
            return None
    elif is_ssn(span, label):
        found = Finding(start, span.end, "SSN")
        if in_identifier(text, start, span.end):
            return None
    else:
        end = phone_end(span, label, direct=direct)
        if end is None or in_identifier(text, span.opens, end) or _negative(span):
            return None
        found = Finding(span.opens, end, "PHONE")
    return None if in_path(text, found.start, found.end) else found


def _negative(span: Span) -> bool:
    """Whether the one group has a minus sign: `-2147467259`."""
    before = span.text[max(0, span.start - 2) : span.start]
    return len(span.groups) == 1 and before.endswith("-") and not before[:1].isalnum()
