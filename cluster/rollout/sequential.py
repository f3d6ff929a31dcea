"""How far two means may be apart, at every moment somebody looks.

A rollout is judged every second. An interval made for one look at the end would be wrong sooner or
later in most of them; these hold at all looks at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import hypot, inf, log, sqrt

from cluster.rollout.evidence import Moments

#: The number of observations at which the interval is tightest.
_TUNED_FOR = 500
#: Below this the normal approximation behind the interval does not hold.
MIN_OBSERVATIONS = 30
#: Below this nothing can be said of how much groups differ.
FEWEST_GROUPS = 20


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
    if moments.n < MIN_OBSERVATIONS:
        return inf
    seen = moments + Moments.of(within) if within else moments
    return sqrt(seen.variance * _boundary_factor(seen.n, alpha))


def rough_radius(n: int, alpha: float) -> float:
    """As `radius`, of a share of which little was seen: by Hoeffding's inequality (1963), for each
    of so many looks."""
    return sqrt(log(2 * MIN_OBSERVATIONS / alpha) / (2 * n)) if 0 < n < MIN_OBSERVATIONS else inf


def grouped_radius(groups: Collection[Moments], alpha: float, *, within: Range) -> float:
    """As `radius`, where observations of one group may be as alike as they like: it is groups that
    are observed. Infinite where there are fewer than `FEWEST_GROUPS`.

    The mean is a ratio of totals, and so is its variance (Cochran, Sampling Techniques, 1977,
    section 9.7). Two groups more, all of whose observations are at one end of the range, stand in
    for groups unlike those seen.
    """
    count = len(groups)
    if count < FEWEST_GROUPS:
        return inf
    size = sum([one.n for one in groups]) / count
    parts = [(one.n, one.total) for one in groups] + [(size, size * end) for end in within]
    count += len(within)
    # In one go, with what is apart multiplied out: it is looked at every second.
    whole = sum_t = nn = nt = tt = 0.0
    for n, total in parts:
        whole += n
        sum_t += total
        nn += n * n
        nt += n * total
        tt += total * total
    mean = sum_t / whole
    apart = max(0.0, tt - 2 * mean * nt + mean * mean * nn) / whole**2
    return sqrt(apart * count / (count - 1) * count * _boundary_factor(count, alpha))


def _boundary_factor(n: float, alpha: float) -> float:
    """By how much the variance of one observation is to be multiplied."""
    tuned = -2 * log(alpha)
    rho2 = (tuned + log(tuned + 1)) / _TUNED_FOR
    return 2 * (n * rho2 + 1) / (n * n * rho2) * log(sqrt(n * rho2 + 1) / alpha)


@dataclass(frozen=True)
class Compared:
    """Two versions over several periods, in each of which the candidate had another share."""

    baseline: float
    """The baseline's mean."""
    estimate: float
    """The candidate's mean minus the baseline's."""
    interval: Interval


def compared(
    periods: Sequence[tuple[Moments, Moments]], alpha: float, *, within: Range | None = None
) -> Compared | None:
    """Baseline and candidate, period by period; None where no period has enough of both.

    With the periods pooled, what happens to both alike would look like the fault of the one that
    had more requests at the time (Simpson's paradox). So each period is compared by itself, and the
    differences are weighted by their information (Cochran, 1954).
    """
    used = [pair for pair in periods if min(pair[0].n, pair[1].n) >= MIN_OBSERVATIONS]
    if not used:
        return None
    weights = [old.n * new.n / (old.n + new.n) for old, new in used]
    shares = [weight / sum(weights) for weight in weights]
    wide = sum(
        hypot(
            *(
                share * radius(pair[side], alpha / 2, within=within)
                for share, pair in zip(shares, used, strict=True)
            )
        )
        for side in (0, 1)
    )
    means = [
        sum(share * pair[side].mean for share, pair in zip(shares, used, strict=True))
        for side in (0, 1)
    ]
    between = means[1] - means[0]
    return Compared(means[0], between, Interval(between - wide, between + wide))
