"""Which answers a rollout may be judged by, each outcome of each answer once. Values only.

A trace id is disclosed with its answer only, so feedback that names one is about an answer that was
given, and each outcome of it counts once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from cluster.rollout.evidence import MEASURES, Moments, VariantStats

Side = Literal["baseline", "candidate"]
"""Of a rollout: who gave an answer."""


@dataclass(frozen=True)
class AnswerSource:
    """Who gave an answer, the group of the user who got it (see `cluster.rollout.groups`), and the
    account of the key it came with (see `cluster.rollout.accounts`)."""

    side: Side
    group: int
    account: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer that a user saw of a version on trial."""

    rollout: int
    phase: int
    side: Side
    group: int
    account: str = ""
    counted: frozenset[str] = frozenset()
    """The outcomes of it that are known, by their names in `VariantStats`."""

    def judged(self, found: VariantStats) -> tuple[Answer, VariantStats] | None:
        """The answer with `found` known of it, and what of that is new; None where nothing is."""
        names = {name for name in MEASURES if getattr(found, name).n}
        if names <= self.counted:
            return None
        old: dict[str, Any] = {name: Moments() for name in names & self.counted}
        return replace(self, counted=self.counted | names), replace(found, **old)
