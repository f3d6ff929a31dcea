"""How far a ratio of two p99s may be off: blocks of one run, drawn anew. Knows no benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.quantiles import percentile

_DRAWS = 2000


def p99_ratio(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], share: float = 0.95
) -> tuple[float, float]:
    """Between which values the ratio of the p99s of `pairs` lies, in `share` of the draws.

    Each pair is of two blocks measured one after the other: latencies of what is compared, and of
    what it is compared with. Latencies within a block go up and down together, so whole pairs are
    drawn, with replacement (the percentile bootstrap; Efron, 1979). The same pairs give the same
    interval.
    """
    assert pairs, "nothing was measured"
    random = np.random.default_rng(0)
    found = []
    for _ in range(_DRAWS):
        drawn = random.integers(len(pairs), size=len(pairs))
        mine, other = (np.concatenate([pairs[i][side] for i in drawn]) for side in (0, 1))
        if len(mine) and len(other):
            found.append(_p99(mine) / _p99(other))
    rest = (1 - share) / 2
    return percentile(found, rest), percentile(found, 1 - rest)


def _p99(values: NDArray[np.float64]) -> float:
    """As `percentile`, without putting all of them in order."""
    place = min(len(values) - 1, int(0.99 * len(values)))
    return float(np.partition(values, place)[place])
