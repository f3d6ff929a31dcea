"""Groups of users, by which an A/B test's evidence is kept. Pure.

Users are split between two versions, not requests, and the answers of one user are alike: they
tell less than as many answers of strangers would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cluster.rollout.evidence import Moments

#: Users beyond so many share groups, which costs an A/B test nothing but patience.
GROUPS = 256


def group_of(user: str) -> int:
    """The group of `user`, on every gateway; it has nothing to do with who gets a candidate."""
    drawn = hashlib.sha256(f"group\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(drawn[:8], "big") % GROUPS


def total(groups: Mapping[Any, Moments]) -> Moments:
    """All groups together."""
    # Looked at every second, for each rollout: sums are quicker than adding values up.
    seen = list(groups.values())
    return Moments(
        sum([one.n for one in seen]),
        sum([one.total for one in seen]),
        sum([one.squares for one in seen]),
    )
