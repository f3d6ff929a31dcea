"""Runs of digit groups, such as `+1 (415) 555-0132`, and the spans of groups that may be a value.

Splits text once for all detectors of numbers. A span begins and ends where a run does or at a
space: `112-3456789-1234567` is one span, never the seven digits inside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

#: Groups of one run in a row that are looked at together; no value has more.
MAX_GROUPS = 12
#: Digits of the longest value, a card number.
MAX_DIGITS = 19
#: Digits of the shortest, a local telephone number.
MIN_DIGITS = 7
#: More groups of one or two digits in a row are a table: no value is written so.
_TABLE = 64
_GROUP = re.compile(r"\d+")
_SEPARATOR = re.compile(r" {1,3}|[._·\-/]|[ .\-/]?\(|\)[ .\-/]?| ?[\-/] ?|[ ]?\(0\)[ .\-]?")
#: Its first groups end a date, and a date is no part of a longer number.
_DATE = re.compile(
    r"(?:19|20)\d{2}([-./])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?!\d)"
    r"|(?:0?[1-9]|[12]\d|3[01])([-./])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)?\d{2}(?!\d)"
)


@dataclass(frozen=True)
class Span:
    """Neighbouring digit groups of one run."""

    text: str
    groups: tuple[tuple[int, int], ...]
    """Start and end of each group."""
    opens: int
    """Where a `+` or `(` before the first group stands, else the group's start."""
    whole: bool
    """Whether these are all groups of their run."""

    @property
    def start(self) -> int:
        """Where the first group, without any prefix, begins."""
        return self.groups[0][0]

    @property
    def end(self) -> int:
        """Where the last group ends."""
        return self.groups[-1][1]

    @cached_property
    def digits(self) -> str:
        """All digits, without separators."""
        return "".join(self.text[start:end] for start, end in self.groups)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Digits of each group."""
        return tuple(end - start for start, end in self.groups)

    @cached_property
    def separators(self) -> tuple[str, ...]:
        """What stands between neighbouring groups."""
        pairs = zip(self.groups, self.groups[1:], strict=False)
        return tuple(self.text[before[1] : after[0]] for before, after in pairs)

    @property
    def uniform(self) -> bool:
        """Whether all separators are the same single one."""
        return len(set(self.separators)) <= 1 and all(one in " .-" for one in self.separators)

    @property
    def prefix(self) -> str:
        """`+`, `(` or `(+` before the first group, or nothing."""
        return self.text[self.opens : self.start]


def runs(text: str) -> Iterator[list[tuple[int, int]]]:
    """The digit groups of `text`, those with a separator between them together; no dates."""
    run: list[tuple[int, int]] = []
    position = 0
    while match := _GROUP.search(text, position):
        start, position = match.span()
        dialled = run and text[run[0][0] - 1 : run[0][0]] == "+"
        date = None if dialled else _DATE.match(text, start)
        if run and (date or not _SEPARATOR.fullmatch(text, run[-1][1], start)):
            yield run
            run = []
        if date and not _continues(text, date.end()):
            position = date.end()
        else:
            run.append((start, position))
    if run:
        yield run


def _continues(text: str, end: int) -> bool:
    """Whether what looks like a date goes on: `01.02.03.04.05` is a telephone number."""
    return re.match(r"[.\-/]\d", text[end : end + 2]) is not None


def spans(text: str, run: list[tuple[int, int]]) -> Iterator[Span]:
    """Spans of a run, longest first from each place where a value may begin; none of a table."""
    if len(run) > _TABLE and all(end - start <= 2 for start, end in run):
        return
    for first, (start, _) in enumerate(run):
        if not _may_begin(text, run, first):
            continue
        digits = 0
        ends = []
        for last in range(first, min(first + MAX_GROUPS, len(run))):
            digits += run[last][1] - run[last][0]
            if digits > MAX_DIGITS:
                break
            if digits >= MIN_DIGITS and _may_end(text, run, last):
                ends.append(last)
        for last in reversed(ends):
            groups = tuple(run[first : last + 1])
            yield Span(
                text, groups, _opening(text, start, groups[-1][1]), whole=len(groups) == len(run)
            )


def _opening(text: str, start: int, end: int) -> int:
    """Where the sign or the parenthesis before the first group stands, if it is closed again."""
    closed = ")" in text[start:end]
    for prefix in ("(+", "+(", "+", "("):
        if (closed or prefix == "+") and text.endswith(prefix, 0, start):
            return start - len(prefix)
    return start


def _may_begin(text: str, run: list[tuple[int, int]], index: int) -> bool:
    if index == 0:
        return not _goes_on_left(text, *run[0])
    between = text[run[index - 1][1] : run[index][0]]
    return between[0] == " " or text[run[index][0] - 1] == "("


def _may_end(text: str, run: list[tuple[int, int]], index: int) -> bool:
    end = run[index][1]
    if index == len(run) - 1:
        return not _goes_on_right(text, *run[index])
    return text[end] == " "


def _goes_on_left(text: str, start: int, end: int) -> bool:
    """Whether `1,234` or `12:30` goes on to the left, though not as a run. Rows of a table do not:
    `4155550132,4155550133` are two values."""
    match = re.search(r"(?<!\d)(\d{1,3})([.,:])\Z", text[max(0, start - 5) : start])
    if match is None:
        return False
    if match.group(2) == ":":
        return end - start <= 2
    return end - start not in (3, 4, 10, 11) or match.group(1) == "0"


def _goes_on_right(text: str, start: int, end: int) -> bool:
    after = re.match(r"([.,:])\d{1,2}(?!\d)", text[end : end + 4])
    return after is not None and (after.group(1) != ":" or end - start <= 2)
