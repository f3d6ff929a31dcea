"""API keys to principals, with a short, bounded cache. Closed by default: no key, no service."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from cluster.errors import UnavailableError
from cluster.records.keys import PREFIX, digest
from cluster.records.trace import Refusal
from cluster.types import Principal, Role
from serve_app.gateway.errors import Refused
from serve_app.gateway.rates import Rates

_MAX_CACHED = 4096
_MAX_KEY = 256
_RPM = 600

Resolve = Callable[[str], Awaitable[Principal | None]]
StillValid = Callable[[], Awaitable[bool]]
"""Whether the key is still valid."""


class Authenticator:
    """Resolves `Authorization: Bearer` headers; unknown keys are cached too, and as briefly."""

    def __init__(
        self,
        resolve: Resolve,
        ttl_s: float,
        ended: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = time.time,
        rates: Rates | None = None,
    ) -> None:
        """`ended` grows whenever a key ends; the cache is dropped then. `rates` bound a key's other
        requests than those for answers."""
        self._rates = rates or Rates(_RPM)
        self._resolve = resolve
        self._ttl_s = ttl_s
        self._ended, self._seen = ended, ended()
        self._now = now
        self._known: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()
        # A cache of their own: a flood of unknown keys must not evict the known ones.
        self._strange: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()

    async def __call__(self, header: str | None, role: Role) -> Principal:
        """The principal behind `header`, who must hold `role`.

        Raises:
            Refused: 401 without a valid key, 403 without the role.
        """
        principal = await self._identify(header)
        return self._holding(principal, role)

    async def _identify(self, header: str | None) -> Principal:
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.startswith(PREFIX) or len(secret) > _MAX_KEY:
            raise Refused(
                Refusal(
                    401, "invalid_api_key", "send a valid key as 'Authorization: Bearer hr-...'"
                )
            )
        principal = await self._lookup(digest(secret.strip()))
        if principal is None:
            message = "this API key is unknown, expired or revoked"
            raise Refused(Refusal(401, "invalid_api_key", message))
        return principal

    @staticmethod
    def _holding(principal: Principal, role: Role) -> Principal:
        if not principal.may(role):
            raise Refused(
                Refusal(403, "access_denied", f"this API key lacks the role {role.value!r}"),
                principal=principal,
            )
        return principal

    async def admit(self, request: Request, role: Role, *, counted: bool = True) -> Principal:
        """The principal behind a request; refusals from here on are recorded as theirs. `counted`
        requests are those that no other limit bounds.

        Raises:
            Refused: as above, or 429.
        """
        principal = await self._identify(request.headers.get("authorization"))
        request.state.principal = principal
        wait = self._rates.take(principal.key_id, self._now()) if counted else None
        if wait is not None:
            message = f"this API key may ask {self._rates.per_minute} times a minute"
            refusal = Refusal(429, "rate_limit_exceeded", message, None, wait)
            raise Refused(refusal, principal=principal)
        # After the rate: a request that lacks the role counts as well.
        return self._holding(principal, role)

    def watch(self, request: Request) -> StillValid:
        """Whether the request's key is still valid, for long streams; no look-up until some key has
        ended."""
        header = request.headers.get("authorization", "")
        secret, seen = header.partition(" ")[2].strip(), self._ended()

        async def valid() -> bool:
            nonlocal seen
            if seen == self._ended():
                return True
            seen = self._ended()
            try:
                return await self._lookup(digest(secret)) is not None
            except UnavailableError:  # the key was valid when the request came
                return True

        return valid

    async def _lookup(self, key_digest: str) -> Principal | None:
        now, ended = self._now(), self._ended()
        if ended != self._seen:
            self._known.clear()
            self._strange.clear()
            self._seen = ended
        cached = self._known.get(key_digest) or self._strange.get(key_digest)
        if cached is not None and cached[0] > now:
            return _unexpired(cached[1], now)
        principal = await self._resolve(key_digest)
        if ended != self._ended():
            return principal  # a key ended meanwhile, and this answer may be older
        for kept in (self._known, self._strange):
            kept.pop(key_digest, None)
        kept = self._strange if principal is None else self._known
        kept[key_digest] = (now + self._ttl_s, principal)
        while len(kept) > _MAX_CACHED:
            kept.popitem(last=False)
        return principal


def _unexpired(principal: Principal | None, now: float) -> Principal | None:
    if principal is None or principal.expires_at is None or principal.expires_at > now:
        return principal
    return None
