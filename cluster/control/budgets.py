"""The control plane's till: the ledger, opened from the registry and kept as the registry says.

What is reserved lives here only. After a restart the accounts are opened with what the meter has,
and gateways settle what they had under way, so that a restart frees nobody from a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from cluster.budget.exchange import Desk, Reservation, Settlement
from cluster.budget.ledger import Ledger, Refusal, Room
from cluster.budget.prices import PriceBook
from cluster.registry import limits, usage


class Till:
    """Answers the gateways' reservations. `begin` opens a session to read the registry by."""

    def __init__(
        self, begin: Callable[[], Session], clock: Callable[[], float] = time.time
    ) -> None:
        self._begin, self._clock = begin, clock
        self._desk = Desk(Ledger(clock()), PriceBook())
        self.reprice()
        with begin() as tx:
            for scope in limits.listed(tx):
                self._open(tx, scope)

    def reprice(self) -> None:
        """Take the newest price book."""
        with self._begin() as tx:
            _, self._desk.prices = usage.books(tx)[-1]

    def reopen(self, scope: str) -> None:
        """Bound `scope` as the registry says now."""
        with self._begin() as tx:
            self._open(tx, scope)

    def _open(self, tx: Session, scope: str) -> None:
        found, now = limits.get(tx, scope), self._clock()
        if found is None:
            self._desk.ledger.close(scope)
            return
        bounds, since = found
        seed = limits.seed(tx, scope, bounds, since, now)
        self._desk.ledger.open(scope, bounds, since, seed, now)

    def exchange(
        self, settlements: Sequence[Settlement], reservations: Sequence[Reservation]
    ) -> list[Room | Refusal]:
        """See `cluster.budget.exchange.Desk`."""
        return self._desk.exchange(settlements, reservations, self._clock())
