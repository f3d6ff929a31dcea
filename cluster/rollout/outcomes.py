"""Which answers a rollout may be judged by, each outcome of each answer once. In memory only.

Whoever knows an answer's trace id was given it with the answer, so it shows that feedback is about
an answer that was given, and nobody can vote twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from cluster.rollout.evidence import Arm, Moments

Side = Literal["baseline", "candidate"]
"""Of a rollout: who gave an answer."""

_REMEMBERED = 200_000


@dataclass
class _Answer:
    rollout: int
    phase: int
    side: Side
    counted: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Outcome:
    """What became of one answer of a rollout, as far as it was not known yet."""

    rollout: int
    phase: int
    side: Side
    found: Arm


class Outcomes:
    """The newest answers of the rollouts under way, by trace id."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def note(self, rollout: int, phase: int, answered: Mapping[str, Side]) -> None:
        """Remember who gave which answer."""
        for trace_id, side in answered.items():
            self._answers.setdefault(trace_id, _Answer(rollout, phase, side))
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)

    def forget(self, rollout: int) -> None:
        """A rollout is over."""
        kept = ((t, answer) for t, answer in self._answers.items() if answer.rollout != rollout)
        self._answers = OrderedDict(kept)

    def take(self, trace_id: str, side: Side, found: Arm) -> Outcome | None:
        """What is new in `found`, if `side` gave that answer; None where nothing is."""
        answer = self._answers.get(trace_id)
        if answer is None or answer.side != side:
            return None
        names = [f.name for f in fields(found) if getattr(found, f.name).n]
        new = [name for name in names if name not in answer.counted]
        if not new:
            return None
        answer.counted.update(new)
        old = {name: Moments() for name in names if name not in new}
        return Outcome(answer.rollout, answer.phase, side, replace(found, **old))
