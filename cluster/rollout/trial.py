"""The verdict of an A/B test. Pure: the evidence in, what may be said of it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from cluster.rollout.evidence import Moments
from cluster.rollout.groups import total
from cluster.rollout.outcomes import Side
from cluster.rollout.plan import Outcome, Trial
from cluster.rollout.sequential import Range, grouped_radius

_RANGES: dict[Outcome, Range] = {
    "rating": (1, 5),
    "resolved": (0, 1),
    "escalated": (0, 1),
    "disliked": (0, 1),
}
_LESS_IS_BETTER = frozenset({"escalated", "disliked"})

Sides = Mapping[Side, Mapping[Any, Moments]]
"""What is known of the outcome that a trial compares: of each version, by what is independent of
each other, such as groups of users; see `cluster.rollout.accounts.clusters`."""


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
    """Outcomes."""
    baseline_groups: int
    candidate_groups: int
    """Groups of users that they are of."""
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
            groups = min(self.baseline_groups, self.candidate_groups)
            return f"{self.says}: {found}, only {seen} outcomes of {groups} users on one side"
        between = f"difference {self.low:+.3f} to {self.high:+.3f}"
        return f"{self.says}: {found}, {between} at {self.confidence:.0%} confidence"


def verdict(trial: Trial, sides: Sides) -> Verdict:
    """What is known of the trial's outcome says this.

    Wrong with a chance of at most one less the confidence, over all looks together (see
    `cluster.rollout.sequential`), however much users differ from each other.
    """
    name, alpha = trial.outcome, 1 - trial.confidence
    groups = [sides.get("baseline", {}), sides.get("candidate", {})]
    old, new = map(total, groups)
    between = new.mean - old.mean
    wide = sum(grouped_radius(one.values(), alpha / 2, within=_RANGES[name]) for one in groups)
    low, high = between - wide, between + wide
    gain, loss = (-high, -low) if name in _LESS_IS_BETTER else (low, high)
    says: Literal["better", "worse", "undecided"] = "undecided"
    if gain > trial.min_gain:
        says = "better"
    elif loss < 0:
        says = "worse"
    return Verdict(
        outcome=name,
        says=says,
        baseline=old.mean,
        candidate=new.mean,
        baseline_n=old.n,
        candidate_n=new.n,
        baseline_groups=len(groups[0]),
        candidate_groups=len(groups[1]),
        low=low,
        high=high,
        confidence=trial.confidence,
    )
