"""`discount_cap`: no answer offers a discount above a percentage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from cluster.config import ConfigModel
from cluster.governance.folding import fold
from cluster.policy.decision import Constraint, Decision, Facts

_OFFER = re.compile(r"\b(\d{1,3}) ?(?:%|percent)(?= ?(?:off|discount))", re.IGNORECASE)
#: A number at the end that may turn out to be an offer: "30", "30 percen", "30% o".
_OPEN_OFFER = re.compile(r"\d+ ?(?:%|[a-z]{0,7})? ?[a-z]{0,8}\Z", re.IGNORECASE)
_LONGEST_OPEN = 64
_PERCENT = re.compile(r"\b(\d{1,3})\s{0,3}(?:%|percent)", re.IGNORECASE)
_ASKS = re.compile(r"discount|\boff\b", re.IGNORECASE)


@dataclass(frozen=True)
class MaxDiscount:
    """The constraint: offers above `percent` are lowered to it."""

    percent: int
    violation: ClassVar[str] = "discount above the cap in the answer"

    def instruction(self) -> str:
        """The sentence that tells the model."""
        return f"Offer no discount over {self.percent}%."

    def enforce(self, text: str) -> str:
        """`text` with every higher offer lowered."""
        parts, position = list[str](), 0
        for match in _OFFER.finditer(fold(text)):
            if int(match.group(1)) > self.percent:
                parts += [text[position : match.start(1)], str(self.percent)]
                position = match.end(1)
        return "".join([*parts, text[position:]])

    def settled(self, text: str) -> int:
        """Up to a number at the end that may become an offer."""
        match = _OPEN_OFFER.search(text, max(0, len(text) - _LONGEST_OPEN))
        if match is None:
            return len(text)
        start = match.start()
        while start > 0 and text[start - 1].isdigit():
            start -= 1
        return start

    def replaces(self, earlier: Constraint) -> bool:
        """One cap at a time: the last rule that applies sets it."""
        return isinstance(earlier, MaxDiscount)


class DiscountCap(ConfigModel):
    """Offer no discount above a percentage unless the user has an attribute."""

    reroutes: ClassVar[bool] = False
    type: Literal["discount_cap"] = "discount_cap"
    max_percent: int = Field(ge=0, le=100)
    unless_attribute: str
    equals: str

    def decide(self, facts: Facts) -> Decision:
        """The cap for all others; a conflict where the user asks for more."""
        if facts.attributes.get(self.unless_attribute) == self.equals:
            return Decision()
        conflicts: tuple[str, ...] = ()
        text = fold(facts.text)
        if _ASKS.search(text):
            asked = [int(number) for number in _PERCENT.findall(text)]
            if any(number > self.max_percent for number in asked):
                conflicts = (f"asked for more than {self.max_percent}% discount",)
        return Decision(
            constraints=(MaxDiscount(self.max_percent),), rules=(self.type,), conflicts=conflicts
        )
