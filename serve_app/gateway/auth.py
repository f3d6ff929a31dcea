"""API keys to principals, with a short, bounded cache. Closed by default: no key, no service."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from cluster.registry.keys import PREFIX, digest
from cluster.types import Principal, Role
from serve_app.gateway.errors import Refused
from serve_app.protocol import Block

_MAX_CACHED = 4096
_MAX_KEY = 256

Resolve = Callable[[str], Awaitable[Principal | None]]


class Authenticator:
    """Resolves `Authorization: Bearer` headers; unknown keys are cached too, and as briefly."""

    def __init__(self, resolve: Resolve, ttl_s: float) -> None:
        self._resolve = resolve
        self._ttl_s = ttl_s
        self._known: OrderedDict[str, tuple[float, Principal | None]] = OrderedDict()

    async def __call__(self, header: str | None, role: Role) -> Principal:
        """The principal behind `header`, who must hold `role`.

        Raises:
            Refused: 401 without a valid key, 403 without the role.
        """
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.startswith(PREFIX) or len(secret) > _MAX_KEY:
            raise Refused(
                Block(401, "invalid_api_key", "send a valid key as 'Authorization: Bearer hr-...'")
            )
        principal = await self._lookup(digest(secret.strip()))
        if principal is None:
            raise Refused(Block(401, "invalid_api_key", "this API key is unknown or revoked"))
        if not principal.may(role):
            raise Refused(
                Block(403, "access_denied", f"this API key lacks the role {role.value!r}")
            )
        return principal

    async def _lookup(self, key_digest: str) -> Principal | None:
        now = time.monotonic()
        cached = self._known.get(key_digest)
        if cached is not None and cached[0] > now:
            return cached[1]
        principal = await self._resolve(key_digest)
        self._known[key_digest] = (now + self._ttl_s, principal)
        self._known.move_to_end(key_digest)
        while len(self._known) > _MAX_CACHED:
            self._known.popitem(last=False)
        return principal
