"""How far two means may be apart, at every moment somebody looks.

A rollout is judged every second. An interval made for one look at the end would be wrong sooner or
later in most of them; these hold at all looks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, log, sqrt

from cluster.rollout.evidence import Moments

#: The number of observations at which the interval is tightest.
_TUNED_FOR = 500
#: Below this the normal approximation behind the interval does not hold.
FEWEST = 30


@dataclass(frozen=True)
class Interval:
    """What the candidate's mean minus the baseline's may be."""

    low: float
    high: float


Range = tuple[float, float]
"""The least and the greatest value that a measure can have."""


def radius(moments: Moments, alpha: float, *, within: Range | None, design: float = 1.0) -> float:
    """Half the width of the confidence sequence of a mean, which misses it with chance `alpha`.

    The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of
    Statistics 2024, theorem 2.2) with Robbins' normal mixture. Values that are all alike have no
    variance to go by: of a measure that lies `within` a range, two observations more, one at each
    end, stand in for what may come. `design` observations tell as much as one (see
    `cluster.rollout.groups.design_effect`).
    """
    if moments.n < FEWEST or design == inf:
        return inf
    seen = moments + Moments.of(within) if within else moments
    tuned = -2 * log(alpha)
    rho2 = (tuned + log(tuned + 1)) / _TUNED_FOR
    n = seen.n / design
    spread = 2 * (n * rho2 + 1) / (n * n * rho2) * log(sqrt(n * rho2 + 1) / alpha)
    return sqrt(seen.variance * spread)


def difference(
    baseline: Moments,
    candidate: Moments,
    alpha: float,
    *,
    within: Range | None = None,
    designs: tuple[float, float] = (1.0, 1.0),
) -> Interval:
    """The candidate's mean minus the baseline's, wrong at any look with a chance of `alpha`.

    `designs` are the two sides' design effects.
    """
    between = candidate.mean - baseline.mean
    wide = sum(
        radius(one, alpha / 2, within=within, design=design)
        for one, design in zip((baseline, candidate), designs, strict=True)
    )
    return Interval(between - wide, between + wide)


@dataclass(frozen=True)
class Compared:
    """Two versions over several stretches of time, each of which had a share of its own."""

    baseline: float
    """The baseline's mean."""
    estimate: float
    """The candidate's mean minus the baseline's."""
    interval: Interval


def compared(
    stretches: Sequence[tuple[Moments, Moments]], alpha: float, *, within: Range | None = None
) -> Compared | None:
    """Baseline and candidate, stretch by stretch; None where no stretch has enough of both.

    Were the stretches taken together, what happens to both alike would look like the fault of the
    one that had more requests just then (Simpson's paradox). So each is compared by itself, and the
    differences are weighted by what they tell (Cochran, 1954).
    """
    told = [pair for pair in stretches if min(pair[0].n, pair[1].n) >= FEWEST]
    if not told:
        return None
    weights = [old.n * new.n / (old.n + new.n) for old, new in told]
    shares = [weight / sum(weights) for weight in weights]
    wide = sum(
        hypot(
            *(
                share * radius(pair[side], alpha / 2, within=within)
                for share, pair in zip(shares, told, strict=True)
            )
        )
        for side in (0, 1)
    )
    means = [
        sum(share * pair[side].mean for share, pair in zip(shares, told, strict=True))
        for side in (0, 1)
    ]
    between = means[1] - means[0]
    return Compared(means[0], between, Interval(between - wide, between + wide))
