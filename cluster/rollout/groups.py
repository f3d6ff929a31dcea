"""Groups of users, by which an A/B test's evidence is kept. Pure.

Users are split between two versions, not requests, and the answers of one user are alike: they
tell less than as many answers of strangers would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import inf

from cluster.rollout.evidence import Moments

#: Users beyond so many share groups, which costs an A/B test nothing but patience.
GROUPS = 256
#: Below this nothing can be said of how much groups differ.
FEWEST = 20


def group_of(user: str) -> int:
    """The group of `user`, on every gateway; it has nothing to do with who gets a candidate."""
    drawn = hashlib.sha256(f"group\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(drawn[:8], "big") % GROUPS


def total(groups: Mapping[int, Moments]) -> Moments:
    """All groups together."""
    # Looked at every second, for each rollout: sums are quicker than adding values up.
    seen = groups.values()
    return Moments(
        sum(one.n for one in seen), sum(one.total for one in seen), sum(one.squares for one in seen)
    )


def design_effect(groups: Mapping[int, Moments], whole: Moments) -> float:
    """How many observations tell as much as one would, were no two of one group; 1 at least.
    `whole` is their total.

    The variance of a ratio of group totals (Cochran, Sampling Techniques, 1977, section 9.7) over
    that of a mean of independent observations (Kish, Survey Sampling, 1965). Infinite where there
    are too few groups to tell.
    """
    count, mean, variance = len(groups), whole.mean, whole.variance
    if count < FEWEST:
        return inf
    if not variance:
        return 1.0
    apart = sum((one.total - mean * one.n) ** 2 for one in groups.values())
    return max(1.0, apart * count / (count - 1) / (whole.n * variance))
