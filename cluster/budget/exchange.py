"""What gateways and the ledger say to each other, and the desk between them that knows prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.budget.ledger import Amount, Ledger, LimitExceeded, Room
from cluster.budget.prices import PriceBook
from cluster.records.usage import TokenUsage


@dataclass(frozen=True)
class Reservation:
    """The most that one call may use."""

    number: str
    scopes: tuple[str, ...]
    model: str | None
    """Who will answer, where that is known already."""
    read: int
    written: int
    """Tokens, at most: what is priced."""
    asks: bool = True
    """Whether an engine is asked; what is only recorded needs no money."""
    choices: int = 1
    """Answers that are asked for: each is one of the requests that a limit counts."""
    expected: int | None = None
    """Tokens that are read as a rule, where that is less: what a limit of tokens a minute is held
    to. What is used beyond them is a debt."""


@dataclass(frozen=True)
class Settlement:
    """What a request has used; `at` is when it was reserved. `uses` None: it never set out."""

    number: str
    scopes: tuple[str, ...]
    at: float
    uses: tuple[TokenUsage, ...] | None
    choices: int = 1


class Desk:
    """Prices what gateways reserve and settle, and enters it."""

    def __init__(self, ledger: Ledger, prices: PriceBook) -> None:
        self.ledger, self.prices = ledger, prices

    def exchange(
        self, settlements: Sequence[Settlement], reservations: Sequence[Reservation], now: float
    ) -> list[Room | LimitExceeded]:
        """Settle first, then answer each reservation in order."""
        for settlement in settlements:
            used = self._used(settlement)
            self.ledger.settle(settlement.number, settlement.scopes, used, settlement.at, now)
        return [
            self.ledger.reserve(item.number, item.scopes, self._most(item), now, paid=item.asks)
            for item in reservations
        ]

    def _used(self, settlement: Settlement) -> Amount:
        if settlement.uses is None:
            return Amount()
        return Amount(
            settlement.choices,
            sum(use.input_tokens + use.output_tokens for use in settlement.uses),
            sum(
                self.prices.tokens(use.target).cost(use.input_tokens, use.output_tokens)
                for use in settlement.uses
            ),
        )

    def _most(self, item: Reservation) -> Amount:
        if item.model is None:
            usd = self.prices.most(item.read, item.written)
        else:
            usd = self.prices.tokens(item.model).cost(item.read, item.written)
        tokens = item.written + (item.read if item.expected is None else item.expected)
        return Amount(item.choices, tokens, usd)
