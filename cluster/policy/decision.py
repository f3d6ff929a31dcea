"""What policy decides about a request, and what it decides from.

A decision is data: the pipeline applies the override, the prompt states the constraints where the
request conflicts with one, and governance enforces them on whole and streamed answers alike. A rule
never does any of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Facts:
    """What a rule may rely on."""

    attributes: Mapping[str, str]
    """Of the caller's key, and of the user it vouches for."""
    text: str
    """The newest user message, masked."""


class Constraint(Protocol):
    """Something that an answer must not say. Immutable and picklable: it crosses to the stages."""

    @property
    def violation(self) -> str:
        """What the trace says where an answer had to be changed."""
        ...

    def instruction(self) -> str:
        """The sentence that tells the model."""
        ...

    def enforce(self, text: str) -> str:
        """`text` with what violates the constraint replaced; `text` itself where nothing does."""
        ...

    def settled(self, text: str) -> int:
        """How many leading characters of an unfinished answer `enforce` cannot change any more,
        whatever follows."""
        ...

    def replaces(self, earlier: Constraint) -> bool:
        """Whether it takes the place of a constraint that an earlier rule asked for."""
        ...


@dataclass(frozen=True)
class Override:
    """Another adapter than the router's."""

    adapter: str
    rule: str


@dataclass(frozen=True)
class Decision:
    """What the rules that applied ask for."""

    override: Override | None = None
    constraints: tuple[Constraint, ...] = ()
    rules: tuple[str, ...] = ()
    """Names of the rules that applied, for the trace."""
    conflicts: tuple[str, ...] = ()
    """Where the request asks for what a rule forbids."""

    def merged(self, later: Decision) -> Decision:
        """Both decisions; of two overrides, or two constraints on the same thing, the later."""
        kept = tuple(
            one
            for one in self.constraints
            if not any(new.replaces(one) for new in later.constraints)
        )
        return Decision(
            later.override or self.override,
            kept + later.constraints,
            self.rules + later.rules,
            self.conflicts + later.conflicts,
        )


def enforce(text: str, constraints: Iterable[Constraint]) -> str:
    """`text` with every constraint enforced, in order."""
    for constraint in constraints:
        text = constraint.enforce(text)
    return text


def settled(text: str, constraints: Iterable[Constraint]) -> int:
    """How many leading characters of an unfinished answer no constraint can change any more."""
    return min((one.settled(text) for one in constraints), default=len(text))
