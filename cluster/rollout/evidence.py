"""What a rollout has seen of its two versions, in sums that gateways add up and send.

Sums of values and of squares are all that is kept of a measure, so that evidence of any number of
gateways and any length of time has the same few numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of a measure."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        """The moments of `values`."""
        kept = list(values)
        return cls(len(kept), sum(kept), sum(value * value for value in kept))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean; 0 where nothing was seen."""
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """The population variance; 0 where nothing was seen."""
        return max(0.0, self.squares / self.n - self.mean**2) if self.n else 0.0


@dataclass(frozen=True)
class VariantStats:
    """One version's measures. Rates are moments of zeros and ones."""

    errors: Moments = field(default_factory=Moments)
    """Of all requests: 1 where it failed by our fault."""
    latency_ms: Moments = field(default_factory=Moments)
    confidence: Moments = field(default_factory=Moments)
    """Geometric mean of the token probabilities, 0 to 1."""
    disliked: Moments = field(default_factory=Moments)
    """Of the answers somebody judged: 1 where they disliked it."""
    escalated: Moments = field(default_factory=Moments)
    """Of the answers whose outcome is known: 1 where a person had to take over."""
    resolved: Moments = field(default_factory=Moments)
    """Of the answers whose outcome is known: 1 where the user's matter was settled."""
    rating: Moments = field(default_factory=Moments)
    """Of the answers somebody rated: 1 to 5."""
    groups: int = 0
    """Of users: a bit for each group that a request was of, see `cluster.rollout.groups`."""

    def __add__(self, other: VariantStats) -> VariantStats:
        sums: dict[str, Any] = {n: getattr(self, n) + getattr(other, n) for n in MEASURES}
        return VariantStats(**sums, groups=self.groups | other.groups)

    def as_json(self) -> dict[str, float | None]:
        """Its means for a reader; None for an outcome that was not reported."""
        digits = {"disliked": 4, "escalated": 4, "resolved": 4, "rating": 3}
        outcomes = {name: getattr(self, name) for name in digits}
        return {
            "requests": self.errors.n,
            "error_rate": round(self.errors.mean, 5),
            "latency_ms": round(self.latency_ms.mean, 2),
            "confidence": round(self.confidence.mean, 4),
            **{
                n: round(found.mean, digits[n]) if found.n else None
                for n, found in outcomes.items()
            },
        }


#: What an arm has moments of.
MEASURES = tuple(f.name for f in fields(VariantStats) if f.name != "groups")


@dataclass(frozen=True)
class Evidence:
    """Both arms side by side, over the same time."""

    baseline: VariantStats = field(default_factory=VariantStats)
    candidate: VariantStats = field(default_factory=VariantStats)

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.baseline + other.baseline, self.candidate + other.candidate)
