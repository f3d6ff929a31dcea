"""The ledger as a service: opened from the registry, and kept as the registry says.

What is reserved lives in memory only. After a restart the accounts are opened with what the meter
has, and gateways settle what they had under way, so that a restart lifts no bound.

`exchange` is called for every bounded request. It runs on an event loop of its own (the actor's
`ledger` concurrency group) and touches no database; what reads the registry runs on the other
loop, and the lock is held only while accounts change in memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from cluster.budget.exchange import Desk, Reservation, Settlement
from cluster.budget.ledger import Ledger, LimitExceeded, Room
from cluster.budget.prices import PriceBook
from cluster.control.database import Database
from cluster.records.limits import Limits
from cluster.registry import keys, limits, usage


class LedgerService:
    """Implements `cluster.control.contracts.Ledger`."""

    def __init__(
        self,
        database: Database,
        invalidate: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`invalidate` has the gateways drop what they cached of keys and their limits."""
        self._database, self._invalidate, self._clock = database, invalidate, clock
        self._lock = threading.Lock()
        self._desk = Desk(Ledger(clock()), PriceBook())
        self._reprice()
        with database.read() as tx:
            for scope in limits.listed(tx):
                self._open(tx, scope)

    def reopen(self, scope: str) -> None:
        """Bound `scope` as the registry says now."""
        with self._database.read() as tx:
            self._open(tx, scope)

    async def exchange(
        self, settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | LimitExceeded]:
        with self._lock:
            return self._desk.exchange(settlements, reservations, self._clock())

    async def set_limits(
        self, scope: str, bounds: Limits, by: str, *, by_operator: bool = False
    ) -> None:
        with self._database.change() as tx:
            limits.put(tx, scope, bounds, actor=by, now=time.time())
            kind, _, name = scope.partition(":")
            if by_operator and kind == "key":
                keys.hold_limits(tx, name, bounds)
        self.reopen(scope)
        self._invalidate()

    async def limits(self, scope: str) -> Limits:
        with self._database.read() as tx:
            found = limits.get(tx, scope)
        return found[0] if found is not None else Limits()

    async def all_limits(self) -> dict[str, Limits]:
        with self._database.read() as tx:
            return {scope: bounds for scope, (bounds, _) in limits.listed(tx).items()}

    async def set_prices(self, book: PriceBook, by: str) -> None:
        with self._database.change() as tx:
            usage.set_prices(tx, book, actor=by, now=time.time())
        self._reprice()

    def _reprice(self) -> None:
        with self._database.read() as tx:
            _, book = usage.books(tx)[-1]
        with self._lock:
            self._desk.prices = book

    def _open(self, tx: Session, scope: str) -> None:
        found, now = limits.get(tx, scope), self._clock()
        if found is None:
            with self._lock:
                self._desk.ledger.close(scope)
            return
        bounds, since = found
        with self._lock:
            self._desk.ledger.begin_seed(scope)
        try:
            seed = limits.seed(tx, scope, bounds, since, now)
            with self._lock:
                self._desk.ledger.open(scope, bounds, since, seed, self._clock())
        finally:
            with self._lock:
                self._desk.ledger.end_seed(scope)
