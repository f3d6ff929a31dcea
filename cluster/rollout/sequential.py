"""How far two means may be apart, at every moment somebody looks.

A rollout is judged every second. An interval made for one look at the end would be wrong sooner or
later in most of them; these hold at all looks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt

from cluster.rollout.evidence import Moments

#: The number of observations at which the interval is tightest.
_TUNED_FOR = 500
#: Below this the normal approximation behind the interval does not hold.
_FEWEST = 30


@dataclass(frozen=True)
class Interval:
    """What the candidate's mean minus the baseline's may be."""

    low: float
    high: float


Range = tuple[float, float]
"""The least and the greatest value that a measure can have."""


def radius(moments: Moments, alpha: float, *, within: Range | None) -> float:
    """Half the width of the confidence sequence of a mean, which misses it with chance `alpha`.

    The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of
    Statistics 2024, theorem 2.2) with Robbins' normal mixture. Values that are all alike have no
    variance to go by: of a measure that lies `within` a range, two observations more, one at each
    end, stand in for what may come.
    """
    if moments.n < _FEWEST:
        return inf
    seen = moments + Moments.of(within) if within else moments
    tuned = -2 * log(alpha)
    rho2 = (tuned + log(tuned + 1)) / _TUNED_FOR
    n = seen.n
    spread = 2 * (n * rho2 + 1) / (n * n * rho2) * log(sqrt(n * rho2 + 1) / alpha)
    return sqrt(seen.variance * spread)


def difference(
    baseline: Moments, candidate: Moments, alpha: float, *, within: Range | None = None
) -> Interval:
    """The candidate's mean minus the baseline's, wrong at any look with a chance of `alpha`."""
    between = candidate.mean - baseline.mean
    wide = radius(baseline, alpha / 2, within=within) + radius(candidate, alpha / 2, within=within)
    return Interval(between - wide, between + wide)
