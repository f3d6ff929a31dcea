"""The attempt loop: resolve, look into the cache, ask the provider, and try again where that helps.

One loop serves whole and streamed answers; they differ in the provider's method, and in what is
charged where the client disconnects. Nothing is tried again once a part of the answer was shown.
Failed attempts are spans of the trace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from cluster.control.protocol import RoutingTable
from cluster.records.model import Target
from cluster.records.trace import Refusal, Span
from cluster.records.usage import TokenUsage
from cluster.rollout.accounts import account
from serve_app.generation import refusals, usage
from serve_app.generation.cache import ResponseCache, Slot
from serve_app.generation.providers.base import OnItem, Provider, ignore
from serve_app.generation.resolve import Resolution, Unresolved, User, on_trial, resolve
from serve_app.generation.targets import Targets
from serve_app.generation.trials import Trials
from serve_app.protocol import (
    AdapterGone,
    AdapterKilled,
    Delta,
    Envelope,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
)

#: Most attempts of one request.
_ATTEMPTS = 8
#: Longest that a request waits for a newer routing table, all its attempts together.
_WAIT_BUDGET_S = 1.0
_POLL_S = 0.005

Items = AsyncGenerator[Delta | Generation, None]
_Ask = Callable[[GenerationRequest, OnItem], Items]
_CLIENT_ERRORS = (AdapterKilled, PromptTooLong, NotSupported)


@dataclass
class _State:
    """What one request's attempts have come to."""

    wait_budget_s: float
    live_only: bool = False
    """The candidate was not available or failed: the live version answers."""
    failed: GenerationRequest | None = None
    """What the candidate failed on, until it is known whether the live version does too."""


class Attempts:
    """Answers envelopes from the providers; what refuses one is written on it."""

    def __init__(
        self,
        provider: Provider,
        table: Callable[[], RoutingTable],
        cache: ResponseCache,
        targets: Targets,
    ) -> None:
        self._provider, self._table, self._cache = provider, table, cache
        self._targets = targets
        self.trials = Trials(provider, table)

    async def whole(self, envelope: Envelope) -> Generation | None:
        """The answer, or None where `envelope.refusal` says why there is none."""
        found = None
        # Whole answers are abandoned without a word of how much the engine had written.
        most = envelope.sampling.max_tokens
        async with aclosing(self._run(envelope, self._complete, most)) as items:
            async for item in items:
                if isinstance(item, Generation):
                    found = item
        return found

    def streamed(self, envelope: Envelope) -> Items:
        """The answer as it comes, then its `Generation`; neither where it is refused."""
        return self._run(envelope, self._provider.stream, 0)

    async def _complete(self, request: GenerationRequest, _on_item: OnItem = ignore) -> Items:
        yield await self._provider.complete(request)

    async def _run(self, envelope: Envelope, ask: _Ask, unreported: int) -> Items:
        """The attempts. `unreported` is how many tokens the engine may have written of an answer
        that was abandoned before it reported any."""
        state, user = _State(_WAIT_BUDGET_S), user_of(envelope)
        for _ in range(_ATTEMPTS):
            table = self._table()
            found = resolve(envelope, table, self._targets, user, live_only=state.live_only)
            # A retry comes to the same warnings.
            envelope.warnings += [one for one in found.warnings if one not in envelope.warnings]
            if isinstance(found, Unresolved):
                envelope.refusal = found.refusal
                return
            envelope.route = found.route
            slot, cached = self._cached(envelope, found.target)
            if cached is not None:
                yield Delta(cached.text)
                yield cached
                return
            request, shown = _request(envelope, found.target), False
            started = time.perf_counter()
            try:
                note = partial(usage.note, envelope, found.target)
                async with aclosing(ask(request, note)) as items:
                    async for item in items:
                        if isinstance(item, Generation):
                            self._finished(envelope, request, item, found, state)
                            if slot is not None:
                                self._cache.put(slot, item, time.monotonic())
                        shown = True
                        yield item
                return
            except AdapterGone:
                # Swapped out between the look-up and the engine; nothing has been shown.
                _failed_attempt(envelope, found.target, started, "not resident")
                await self._await_table(table.generation, found.target, state)
            except (asyncio.CancelledError, GeneratorExit):
                if envelope.usage is None:
                    window = self._targets.window
                    envelope.usage = usage.bound(envelope, request, unreported, window)
                raise
            except Exception as error:  # its fault costs this request, which is still recorded
                _failed_attempt(envelope, found.target, started, type(error).__name__)
                if shown or not self._retry_live(request, error, found, state):
                    envelope.refusal = _refusal(envelope, error)
                    return
        envelope.refusal = refusals.swapping()

    def _cached(self, envelope: Envelope, target: Target) -> tuple[Slot | None, Generation | None]:
        """The cache's place for this prompt and what it holds; says so on the envelope."""
        slot = self._cache.slot(envelope, target.id)
        found = self._cache.get(slot, time.monotonic()) if slot else None
        envelope.cache = "off" if slot is None else "hit" if found else "miss"
        if found is not None:
            envelope.usage = TokenUsage(found.version, 0, 0)
        return slot, found

    def _finished(
        self,
        envelope: Envelope,
        request: GenerationRequest,
        answer: Generation,
        resolution: Resolution,
        state: _State,
    ) -> None:
        """Count a complete answer: its tokens, its latency, and what it shows in a rollout."""
        usage.note(envelope, request.target, answer)
        self._targets.observe(request.target, answer)
        user = user_of(envelope)
        if state.failed is not None:
            # The live version answered what the candidate failed on: only then is it evidence.
            self.trials.record(state.failed, None, user)
        if resolution.picked:
            self.trials.record(request, answer, user)

    async def _await_table(self, known: int, target: Target, state: _State) -> None:
        """Wait for a table newer than `known`, within the budget. Without one, a candidate that no
        replica holds is given up for the live version, and is no evidence."""
        deadline = time.monotonic() + state.wait_budget_s
        # No event announces a table here, and a swap is rare.
        while self._table().generation <= known and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        state.wait_budget_s = max(0.0, deadline - time.monotonic())
        if self._table().generation <= known and on_trial(self._table(), target):
            state.live_only = True

    def _retry_live(
        self, request: GenerationRequest, error: Exception, resolution: Resolution, state: _State
    ) -> bool:
        """Whether the live version is to answer what a candidate failed on.

        Users must not pay for a rollout. And where the live version fails as well, the request or
        the engine is at fault, which is no evidence: a caller could send what fails.
        """
        if isinstance(error, _CLIENT_ERRORS) or not resolution.picked:
            return False
        if not on_trial(self._table(), request.target):
            return False
        state.live_only, state.failed = True, request
        return True


def user_of(envelope: Envelope) -> User:
    """Who keeps to one of two versions: whom the caller named, else whose key it is."""
    name = envelope.user or envelope.key_id
    return User(name, account(envelope.tenant, envelope.key_id))


def _request(envelope: Envelope, target: Target) -> GenerationRequest:
    return GenerationRequest(
        envelope.trace_id,
        tuple(envelope.prompt or envelope.messages),
        replace(envelope.sampling, tools=envelope.tools),
        target,
        envelope.chat,
        envelope.tenant,
    )


def _refusal(envelope: Envelope, error: Exception) -> Refusal:
    """Why there is no answer, as the client reads it."""
    if isinstance(error, AdapterKilled):
        return refusals.killed(str(error))
    if isinstance(error, PromptTooLong | NotSupported):
        return refusals.impossible(error)
    return refusals.failed(envelope)


def _failed_attempt(envelope: Envelope, target: Target, started: float, outcome: str) -> None:
    ms = (time.perf_counter() - started) * 1000
    start = (time.time() - envelope.received_at) * 1000 - ms
    span = Span(target.id, round(ms, 3), round(start, 3), 1, outcome, parent="generation")
    envelope.spans.append(span)
