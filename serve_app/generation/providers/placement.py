"""Which replicas an adapter's requests go to: as many as its traffic needs, and always the same.

A replica that is one of them for the first time is asked to load the adapter, and takes its
requests once it has said that it holds it. One that has said that it does not is passed over for a
while. Every gateway comes to the same replicas by itself.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from cluster.records.adapter import ServedAdapter
from serve_app.rpc.client import CallFailed, Connection, ReplicaLost
from serve_app.tasks import spawn_detached

logger = logging.getLogger(__name__)

#: Replicas for each that an adapter's load alone would fill: room for it to grow.
_HEADROOM = 2.0
_REMEMBERED = 16_384
#: How long a replica that did not hold an adapter gets no request of it, where another is there.
_LACKING_S = 2.0

Share = Callable[[str], float]
"""An adapter's share of the load, 0 to 1."""


def copies(share: float, replicas: int) -> int:
    """How many of `replicas` an adapter with `share` of the load is to be held by."""
    return max(1, min(replicas, math.ceil(_HEADROOM * share * replicas)))


def ranked(name: str, replicas: Sequence[str]) -> list[str]:
    """`replicas` in the order in which adapter `name` takes them (rendezvous hashing, Thaler and
    Ravishankar 1998): one more or one less moves only what has to move."""

    def weight(replica: str) -> bytes:
        return hashlib.blake2b(f"{name}\0{replica}".encode(), digest_size=8).digest()

    return sorted(replicas, key=weight)


class Placement:
    """One gateway's knowledge of who holds what."""

    def __init__(self, share: Share, now: Callable[[], float] = time.monotonic) -> None:
        self._share, self._now = share, now
        self._held: OrderedDict[tuple[str, int], bool] = OrderedDict()
        """By replica and engine id: whether it has said that it holds it, or was only asked."""
        self._lacking: OrderedDict[tuple[str, int], float] = OrderedDict()
        """Until when those that have said that they do not are passed over."""

    def of(self, adapter: ServedAdapter, usable: list[Connection]) -> list[Connection]:
        """Those of `usable` that take a request of `adapter` now; never none."""
        if self._lacking:
            now, key = self._now(), adapter.int_id
            some = [
                one for one in usable if self._lacking.get((one.address.replica, key), now) <= now
            ]
            usable = some or usable
        if len(usable) == 1:
            return usable
        by_name = {one.address.replica: one for one in usable}
        order = ranked(adapter.name, list(by_name))
        wanted = order[: copies(self._share(adapter.name), len(order))]
        ready = []
        for replica in wanted:
            if self._held.get((replica, adapter.int_id)):
                ready.append(by_name[replica])
            elif len(wanted) > 1:
                self._ask(by_name[replica], adapter)
        if ready:
            return ready
        home = by_name[wanted[0]]
        for replica in order[len(wanted) :]:
            if self._held.get((replica, adapter.int_id)):  # since it had more of the load, say
                self._ask(home, adapter)
                return [by_name[replica]]
        # Where no replica is known to hold it, the first loads it for its first request.
        return [home]

    def answered(self, replica: str, adapter: ServedAdapter) -> None:
        """`replica` has answered a request of `adapter`, and so holds it."""
        self._remember((replica, adapter.int_id), held=True)

    def missed(self, replica: str, adapter: ServedAdapter) -> None:
        """`replica` has said that it does not hold `adapter`."""
        key = (replica, adapter.int_id)
        self._held.pop(key, None)
        self._lacking[key] = self._now() + _LACKING_S
        self._lacking.move_to_end(key)
        while self._lacking and (
            len(self._lacking) > _REMEMBERED or next(iter(self._lacking.values())) <= self._now()
        ):
            self._lacking.popitem(last=False)

    def _ask(self, connection: Connection, adapter: ServedAdapter) -> None:
        key = (connection.address.replica, adapter.int_id)
        if key not in self._held:
            self._remember(key, held=False)
            spawn_detached(self._prefetch(connection, adapter))

    async def _prefetch(self, connection: Connection, adapter: ServedAdapter) -> None:
        key = (connection.address.replica, adapter.int_id)
        try:
            held = bool(await connection.call("hold", adapter))
        except (ReplicaLost, CallFailed):
            held = False
        if held:
            self._remember(key, held=True)
        else:
            self._held.pop(key, None)
            logger.warning("%s does not hold %s yet", connection.address.replica, adapter.label)

    def _remember(self, key: tuple[str, int], *, held: bool) -> None:
        self._held[key] = held
        self._held.move_to_end(key)
        while len(self._held) > _REMEMBERED:
            self._held.popitem(last=False)
