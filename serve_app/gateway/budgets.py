"""The gateway's side of budgets: reserve before a request sets out, settle when it has ended.

Owns what is on its way to the ledger. Requests of callers that nothing bounds never come here. A
call to the ledger carries all that wait for one, so that it costs the same at any traffic.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from cluster.budget.exchange import Reservation, Settlement
from cluster.budget.ledger import LimitExceeded, Room
from cluster.records.limits import key_scope
from cluster.records.trace import Refusal
from cluster.records.usage import TokenUsage
from cluster.types import Principal
from serve_app.gateway.errors import Refused
from serve_app.gateway.shares import Share
from serve_app.generation.usage import max_input_tokens
from serve_app.protocol import Envelope
from serve_app.tasks import spawn_detached

logger = logging.getLogger(__name__)

Spend = Callable[[list[Settlement], list[Reservation]], Awaitable[list[Room | LimitExceeded]]]
Stitched = Callable[[str | None], tuple[int, int]]
"""Tokens that context may add to an adapter's prompt: see `serve_app.config.ContextConfig`."""
_PATIENCE_S = 5.0
_AGAIN_S = 0.5
_AT_ONCE = 1024
_KEPT = 16_384


@dataclass
class _Waiting:
    reservation: Reservation
    answer: asyncio.Future[Room | LimitExceeded]


class Hold:
    """What one HTTP request has reserved; settled when the last of its envelopes has ended."""

    def __init__(
        self, room: Room, parts: int, settle: Callable[[tuple[TokenUsage, ...] | None], None]
    ) -> None:
        self.room = room
        self._left = parts
        self._settle = settle
        self._uses: list[TokenUsage] = []
        self.share: Share | None = None
        """Of its tenant's answers under way; given back as they end."""

    def ended(self, envelope: Envelope) -> None:
        """Take note of what one envelope has used."""
        if self.share is not None:
            self.share.release(1)
        if (used := envelope.usage) is not None:
            self._uses.append(used)
        self._left -= 1
        if self._left == 0:
            self._settle(tuple(self._uses))

    def close(self) -> None:
        """Settle now; envelopes that have not ended never set out."""
        if self.share is not None:
            self.share.release()
        if self._left > 0:
            self._left = 0
            self._settle(tuple(self._uses))

    @property
    def headers(self) -> dict[str, str]:
        """What is left, as OpenAI's clients read it."""
        room = self.room
        named = {
            "x-ratelimit-limit-requests": room.limit_requests,
            "x-ratelimit-remaining-requests": room.remaining_requests,
            "x-ratelimit-limit-tokens": room.limit_tokens,
            "x-ratelimit-remaining-tokens": room.remaining_tokens,
        }
        return {name: str(value) for name, value in named.items() if value is not None}


class Unbounded(Hold):
    """The hold of a caller whom nothing bounds: there is nothing to settle."""

    def __init__(self) -> None:
        super().__init__(Room(), 0, lambda _uses: None)

    def ended(self, envelope: Envelope) -> None:
        """See `Hold`."""
        if self.share is not None:
            self.share.release(1)


class Budgets:
    """Reserves and settles through `spend`, which is the control plane's."""

    def __init__(
        self,
        spend: Spend,
        window: int,
        stitched: Stitched = lambda _adapter: (0, 0),
        base: str = "",
    ) -> None:
        """`window` is the most tokens that one prompt with its answer can have, `stitched` what
        context may add to a prompt, `base` the base model's name."""
        self._spend, self._window = spend, window
        self._stitched, self._base = stitched, base
        self._settlements: list[Settlement] = []
        self._waiting: list[_Waiting] = []
        self._flushing: asyncio.Task[None] | None = None

    async def reserve(
        self,
        principal: Principal,
        model: str | None,
        envelopes: Sequence[Envelope],
        *,
        asks: bool = True,
        choices: int = 1,
    ) -> Hold:
        """Hold the most that `envelopes` may use; with `model` None the router picks the target.
        Without `asks` no engine is asked. A limit of requests counts `choices` of them.

        Raises:
            Refused: 429 where it would go over a bound, 503 where that cannot be known now.
        """
        if not principal.limited:
            return Unbounded()
        adapter = "" if model == self._base else model and model.partition("@")[0]
        # Money at most: another adapter than the one named may answer.
        context, usual = self._stitched(None)[0], self._stitched(adapter)[1]
        read, expected, written = self._most(envelopes, context, usual)
        number, scopes, at = uuid.uuid4().hex, principal.limited, time.time()

        def settle(uses: tuple[TokenUsage, ...] | None) -> None:
            self._settlements.append(Settlement(number, scopes, at, uses, choices))
            self._wake()

        wanted = Reservation(number, scopes, model, read, written, asks, choices, expected)
        waiting = _Waiting(wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake()
        try:
            answer = await waiting.answer
        except asyncio.CancelledError:
            # One that waits is taken back; one that is on its way may be granted yet.
            if any(one is waiting for one in self._waiting):
                self._waiting = [one for one in self._waiting if one is not waiting]
            else:
                settle(None)
            raise
        if isinstance(answer, LimitExceeded):
            refusal = _over(answer, f"{expected} to read, up to {usual} of them context")
            raise Refused(refusal, principal=principal, model=model or "")
        return Hold(answer, len(envelopes), settle)

    async def hold(
        self,
        share: Share,
        principal: Principal,
        model: str | None,
        envelopes: Sequence[Envelope],
        *,
        choices: int | None = None,
    ) -> Hold:
        """As `reserve`, for a call that has taken `share`, which is given back with the hold.

        A limit of requests counts `choices` of them, or every envelope.
        """
        many = len(envelopes) if choices is None else choices
        try:
            hold = await self.reserve(principal, model, envelopes, choices=many)
        except BaseException:
            share.release()
            raise
        hold.share = share
        return hold

    async def count(
        self, principal: Principal, envelope: Envelope, *, key_only: bool = False
    ) -> None:
        """Enter a request that no engine is asked for among those that may be made; with
        `key_only`, not among its tenant's.

        Raises:
            Refused: as `reserve`, but for money.
        """
        if key_only:
            own = key_scope(principal.key_id)
            scopes = tuple(scope for scope in principal.limited if scope == own)
            principal = replace(principal, limited=scopes)
        free = replace(envelope, usage=TokenUsage(envelope.model, 0, 0))
        (await self.reserve(principal, envelope.model, [free], asks=False)).close()

    def _most(
        self, envelopes: Sequence[Envelope], context: int, usual: int
    ) -> tuple[int, int, int]:
        """Tokens that `envelopes` may read with `context` at most, and with the `usual` one, and
        the most that they may write; a prompt is read once for all its answers."""
        read = expected = written = 0
        prompts: set[int] = set()
        for envelope in envelopes:
            if envelope.usage is not None:  # what an embedding costs is known before
                read += envelope.usage.input_tokens
                expected += envelope.usage.input_tokens
                continue
            written += min(envelope.sampling.max_tokens, self._window)
            if id(envelope.counting) not in prompts:
                prompts.add(id(envelope.counting))
                sampling = replace(envelope.sampling, tools=envelope.tools)
                own = max_input_tokens(envelope.messages, sampling, self._window)
                read += min(self._window, own + context)
                expected += min(self._window, own + usual)
        return read, expected, written

    def _wake(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = spawn_detached(self._flush())

    async def _flush(self) -> None:
        while self._settlements or self._waiting:
            settlements, self._settlements = (
                self._settlements[:_AT_ONCE],
                self._settlements[_AT_ONCE:],
            )
            waiting, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            wanted = [one.reservation for one in waiting]
            try:
                answers = await asyncio.wait_for(self._spend(settlements, wanted), _PATIENCE_S)
            except Exception:  # the control plane restarts: closed for what is bounded until then
                logger.exception("the ledger does not answer; what is bounded is refused")
                # At-least-once delivery: the ledger deduplicates settlements. The call may have
                # been carried out, so the reservations are settled as unused.
                back = [Settlement(one.number, one.scopes, time.time(), None) for one in wanted]
                # Beyond so many the oldest are left to the ledger, which counts them as used.
                self._settlements = (settlements + self._settlements + back)[-_KEPT:]
                for one in waiting:
                    if not one.answer.done():
                        one.answer.set_exception(Refused(_unknown()))
                await asyncio.sleep(_AGAIN_S)
                continue
            for one, answer in zip(waiting, answers, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)


def _unknown() -> Refusal:
    return Refusal(503, "budget_unavailable", "what is left of your limits is not known; try again")


def _over(refusal: LimitExceeded, reading: str) -> Refusal:
    whose = "this API key's" if refusal.scope.startswith("key:") else "your organisation's"
    if refusal.limit == "usd":
        message = f"{whose} budget of {refusal.allowed:g} US dollars does not cover this request"
        return Refusal(429, "insufficient_quota", message, None, refusal.retry_after_s)
    what = "requests" if refusal.limit == "rpm" else "tokens"
    message = f"{whose} limit is {refusal.allowed:g} {what} a minute"
    if refusal.retry_after_s is None:
        message += f"; this request alone may need {refusal.wanted:g}"
        message += f" ({reading}): lower max_tokens" if refusal.limit == "tpm" else ""
    return Refusal(429, "rate_limit_exceeded", message, None, refusal.retry_after_s)
