"""The record of refusals: a wrong key, a model out of reach, a path that does not exist.

Every denial of a known key is recorded. Recorded up to a rate, and only counted above it, are
requests without a valid key, requests over a limit, and malformed requests: neither strangers nor a
client that ignores 429 may fill the log, or keep another tenant's attempts out of it.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from cluster.governance.vault import Vault, mask
from cluster.records.trace import RefusalTrace
from cluster.types import Principal
from serve_app.gateway.errors import Refused
from serve_app.protocol import Envelope, carrier

_DENIED = frozenset({401, 403, 404, 405, 429})
#: Of a known key: a name too long to be one, another tenant's trace, a body that means something
#: else may be attempts too.
_IMPROPER = frozenset({400, 409, 413, 415})
_BOUNDED_A_SECOND = 20
_LONGEST = 256


class RefusalLog:
    """Records refusals, up to a rate."""

    def __init__(
        self,
        record: Callable[[Envelope], Awaitable[None]],
        count: Callable[[Principal, Envelope], Awaitable[None]],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`count` enters one of a key's requests, and is refused where it may make no more."""
        self._record, self._count = record, count
        self._now = now
        self._second = 0
        # By tenant; all strangers are one.
        self._seen, self._unrecorded = Counter[str](), Counter[str]()

    async def __call__(self, error: Refused, path: str) -> str | None:
        """The trace of a refusal, or None where it was not a denial or was only counted."""
        now, principal = self._now(), error.principal
        improper = principal is not None and error.refusal.status in _IMPROPER
        if error.refusal.status not in _DENIED and not improper:
            return None
        tenant = principal.tenant if principal else ""
        event = RefusalTrace(
            trace_id=f"tr-{uuid.uuid4().hex}",
            received_at=now,
            recorded_at=now,
            tenant=tenant,
            key_id=principal.key_id if principal else "",
            requested_model=error.model[:_LONGEST],
            path=_masked(path[:_LONGEST]),
            refusal=error.refusal,
        )
        if principal is None or improper or error.refusal.status == 429:
            room = self._room(tenant, int(now))
        else:
            room = await self._may(principal, carrier(event), int(now))
        if not room:
            self._unrecorded[tenant] += 1
            return None
        if missed := self._unrecorded.pop(tenant, 0):
            event = replace(event, unrecorded_before=missed)
        await self._record(carrier(event))
        return event.trace_id

    async def _may(self, principal: Principal, envelope: Envelope, second: int) -> bool:
        try:
            await self._count(principal, envelope)
        except Refused:  # it is over its limit, or the ledger does not answer
            return self._room(principal.tenant, second)
        return True

    def _room(self, tenant: str, second: int) -> bool:
        if second != self._second:
            self._second, self._seen = second, Counter()
        self._seen[tenant] += 1
        return self._seen[tenant] <= _BOUNDED_A_SECOND


def _masked(path: str) -> str:
    """A path segment by segment: as a whole it is an address, in which nothing is a value."""
    vault = Vault()
    return "/".join(mask(segment, vault) for segment in path.split("/"))
