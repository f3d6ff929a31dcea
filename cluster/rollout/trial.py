"""The verdict of an A/B test. Pure: the evidence in, what may be said of it out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from cluster.rollout.evidence import Evidence
from cluster.rollout.plan import Outcome, Trial
from cluster.rollout.sequential import Range, difference

_RANGES: dict[Outcome, Range] = {
    "rating": (1, 5),
    "resolved": (0, 1),
    "escalated": (0, 1),
    "disliked": (0, 1),
}
_LESS_IS_BETTER = frozenset({"escalated", "disliked"})


@dataclass(frozen=True)
class Verdict:
    """What an A/B test has shown; differences are the candidate's less the live version's."""

    outcome: Outcome
    says: Literal["better", "worse", "undecided"]
    """Of the candidate: better by at least the gain that was asked for, or worse at all."""
    baseline: float
    candidate: float
    baseline_n: int
    candidate_n: int
    low: float
    high: float
    """The true difference lies between these, with `confidence`, however often one looks."""
    confidence: float

    def as_json(self) -> dict[str, Any]:
        """As JSON has it, which knows no infinity: bounds that are not known yet are None.

        `text` says it in a sentence.
        """
        found = {**asdict(self), "text": str(self)}
        return {**found, **{n: None for n in ("low", "high") if not isfinite(found[n])}}

    def __str__(self) -> str:
        found = f"{self.outcome} {self.baseline:.3f} to {self.candidate:.3f}"
        if self.low == float("-inf"):
            seen = min(self.baseline_n, self.candidate_n)
            return f"{self.says}: {found}, only {seen} outcomes on one side"
        between = f"difference {self.low:+.3f} to {self.high:+.3f}"
        return f"{self.says}: {found}, {between} at {self.confidence:.0%} confidence"


def verdict(trial: Trial, seen: Evidence) -> Verdict:
    """What `seen` says of the trial's outcome.

    Wrong with a chance of at most one less the confidence, over all looks together (see
    `cluster.rollout.sequential`).
    """
    name = trial.outcome
    old, new = getattr(seen.baseline, name), getattr(seen.candidate, name)
    found = difference(old, new, 1 - trial.confidence, within=_RANGES[name])
    gain, loss = (found.low, found.high)
    if name in _LESS_IS_BETTER:
        gain, loss = -found.high, -found.low
    says: Literal["better", "worse", "undecided"] = "undecided"
    if gain > trial.min_gain:
        says = "better"
    elif loss < 0:
        says = "worse"
    return Verdict(
        name, says, old.mean, new.mean, old.n, new.n, found.low, found.high, trial.confidence
    )
