"""The gateway's evidence on rollouts: shadow requests, and sums of how both versions answered.

Reports are delivered to the control plane at least once, and deduplicated there by their number.
Keeps reports in memory only: undelivered ones are lost with this process.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import replace

from cluster.control.protocol import RoutingTable, Split
from cluster.rollout.accounts import is_aside
from cluster.rollout.evidence import Evidence, Moments, VariantStats
from cluster.rollout.groups import group_of
from cluster.rollout.outcomes import AnswerSource
from cluster.rollout.state import Report, chosen
from serve_app.generation.providers.base import Provider
from serve_app.generation.resolve import User
from serve_app.generation.targets import Targets
from serve_app.protocol import AdapterGone, AdapterKilled, Generation, GenerationRequest
from serve_app.tasks import spawn_detached

logger = logging.getLogger(__name__)

#: Shadow requests at a time. Above it a request goes without: a shadow must not crowd users out.
_SHADOWS = 8
_SHADOW_S = 60.0
#: Undelivered reports that are kept. A rollout makes one a second for each key in use.
_KEPT = 20_000


_Of = tuple[int, int, str]
"""Rollout, phase and account that something was seen of."""


class Trials:
    """Sums up evidence, and tries shadow requests on candidates."""

    def __init__(self, provider: Provider, table: Callable[[], RoutingTable]) -> None:
        self._provider, self._table = provider, table
        self._seen: dict[_Of, Evidence] = {}
        self._answered: dict[_Of, dict[str, AnswerSource]] = {}
        self._shadows: set[asyncio.Task[None]] = set()
        self._undelivered: list[Report] = []
        self._number = 0

    def record(self, request: GenerationRequest, generation: Generation | None, user: User) -> None:
        """Count what a version answered that was picked for `user`, or None for a fault of the
        candidate's; a share of the requests is tried on a shadow as well."""
        if request.adapter is None:
            return
        split = self._table().splits.get(request.adapter.name)
        if split is None:
            return
        account = user.account
        group, key = group_of(user.name), (split.rollout, split.phase, account)
        answered = _arm(generation, group)
        if request.adapter == split.candidate:
            self._count(key, Evidence(candidate=answered))
            given = AnswerSource("candidate", group, account)
            self._note(split, key, request, given, generation)
            return
        shadowed = split.shadow and chosen(split.rollout, request.request_id, split.percent)
        shadowed = shadowed and not is_aside(split.aside, account)
        if shadowed and len(self._shadows) >= _SHADOWS:
            return
        if not split.shadow:
            self._count(key, Evidence(baseline=answered))
            given = AnswerSource("baseline", group, account)
            self._note(split, key, request, given, generation)
        if shadowed:
            task = spawn_detached(self._shadow(split, key, request, answered))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    def reports(self, source: str) -> list[Report]:
        """New evidence since the last call, and reports whose delivery failed."""
        found, self._undelivered = self._undelivered, []
        for key, seen in self._seen.items():
            self._number += 1
            rollout, phase, account = key
            answered, of = self._answered.get(key, {}), (rollout, phase, seen)
            found.append(Report(source, self._number, *of, answered, account=account))
        self._seen.clear()
        self._answered.clear()
        return found

    def requeue(self, reports: list[Report]) -> None:
        """Deliver these again with the next, the oldest dropped if there are too many."""
        self._undelivered = reports[-_KEPT:]

    async def _shadow(
        self, split: Split, key: _Of, request: GenerationRequest, baseline: VariantStats
    ) -> None:
        again = replace(
            request,
            request_id=f"{request.request_id}-shadow",
            target=Targets.of(split.candidate),
        )
        try:
            answer = await asyncio.wait_for(self._provider.complete(again), _SHADOW_S)
        except (AdapterGone, AdapterKilled):
            return  # no replica holds it now, which is no fault of its own
        except Exception:  # what the candidate does to this request is what is looked for
            logger.warning("shadow of %s failed on %s", split.candidate.label, again.request_id)
            answer = None
        # The live version counts where the candidate does: on the same requests.
        self._count(key, Evidence(baseline, replace(_arm(answer), groups=baseline.groups)))

    def _note(
        self,
        split: Split,
        key: _Of,
        request: GenerationRequest,
        given: AnswerSource,
        answer: Generation | None,
    ) -> None:
        if answer is not None and not split.shadow:
            self._answered.setdefault(key, {})[request.request_id] = given

    def _count(self, key: _Of, seen: Evidence) -> None:
        self._seen[key] = self._seen.get(key, Evidence()) + seen


def _arm(generation: Generation | None, group: int | None = None) -> VariantStats:
    groups = 0 if group is None else 1 << group
    if generation is None:
        return VariantStats(errors=one(True), groups=groups)
    return VariantStats(
        groups=groups,
        errors=one(False),
        # Without the wait for its turn, which is longer for the version with fewer requests.
        latency_ms=Moments.of([generation.total_ms - generation.waited_ms]),
        confidence=Moments.of([math.exp(generation.mean_logprob)]),
    )


def one(value: float | None) -> Moments:
    """The moments of one value, or of none."""
    return Moments() if value is None else Moments.of([float(value)])
