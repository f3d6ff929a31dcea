"""What a detector reports, and the kinds of personal data there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import UserError

#: Every kind has a placeholder, `[KIND_1]`, and a token of the base model's vocabulary.
KINDS = ("EMAIL", "IBAN", "CARD", "SSN", "IP", "PHONE")

#: How far to the left of a value a detector may look: labels, URLs, identifiers. What decides about
#: a value stands within this many characters before it, so a stream keeps no more than that.
LOOK_BEHIND = 256
_DIGIT = re.compile(r"\d")


Free = Callable[[int, int], bool]
Tick = Callable[[], None]
"""Called while a text is worked on; raises `OutOfTime` where that has taken too long."""


class OutOfTime(UserError):
    """A text takes longer to be worked on than it may."""


def unlimited() -> None:
    """A tick that never ends anything."""


@dataclass(frozen=True, order=True)
class Finding:
    """A value at `text[start:end]`."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Hints:
    """What tells cheaply that a text holds no value of a kind."""

    at_sign: bool
    digits: int
    colons: int

    @classmethod
    def of(cls, text: str) -> Hints:
        """The hints of a folded text."""
        at_sign = "@" in text or "%40" in text
        return cls(at_sign, len(_DIGIT.findall(text)), text.count(":"))


class Detector(Protocol):
    """Finds the values of one kind, or of related ones, in folded text (`folding.fold`).

    The same detectors serve requests, answers, streams and passages: `cluster.governance.pii.find`.

    Whether `text[start:end]` is a finding may depend on `LOOK_BEHIND` characters before it and on
    the characters that directly follow it. A value never contains a quote, a backslash, a line
    break or another control character, so replacing it keeps JSON text valid.
    """

    def applies(self, hints: Hints) -> bool:
        """Whether a text with these hints may hold such a value at all."""
        ...

    def find(self, text: str, free: Free, tick: Tick) -> Iterator[Finding]:
        """The findings in `text`, from left to right, none overlapping another.

        `free` tells whether a span overlaps no finding so far, of earlier detectors or of this one;
        `tick` is called now and then, and may raise `OutOfTime`.
        """
        ...
