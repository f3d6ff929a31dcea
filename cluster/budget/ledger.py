"""The ledger: reserve before, settle after. Pure: `now` is passed in, in seconds since the epoch.

A reservation counts in full until it is settled, so that no number of requests side by side gets
past a bound. What a request used beyond its reservation is a debt: it counts, and nothing new is
let in until there is room again. A reservation that is never settled counts as used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.records.limits import Limits, Seed

#: A minute, and the second that an entry's time is rounded down by.
_WINDOW_S = 61
#: Age in seconds at which an unsettled reservation counts as used; no request takes as long.
_LOST_S = 900.0
_NOTHING_USD = 1e-12


@dataclass(frozen=True)
class Amount:
    """What is reserved or was used."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True)
class LimitExceeded:
    """The bound that a reservation would have broken."""

    scope: str
    limit: str
    """`rpm`, `tpm` or `usd`."""
    allowed: float
    wanted: float
    retry_after_s: float | None
    """When there may be room; None where waiting does not help."""


@dataclass(frozen=True)
class Room:
    """What is left in the tightest account after a reservation; None where nothing bounds it."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None


class _Window:
    """The sum of the last minute, by second."""

    def __init__(self) -> None:
        self._seconds: dict[int, int] = {}
        self.total = 0

    def add(self, at: float, amount: int, now: float) -> None:
        """Count `amount`, which may be negative, at `at`; what is over already does not count."""
        if int(at) + _WINDOW_S > now:
            self._seconds[int(at)] = self._seconds.get(int(at), 0) + amount
            self.total += amount

    def pass_to(self, now: float) -> None:
        """Forget what is over."""
        for second in [second for second in self._seconds if second + _WINDOW_S <= now]:
            self.total -= self._seconds.pop(second)

    def frees(self, need: int, now: float) -> float:
        """Seconds until `need` has left the window."""
        for second in sorted(self._seconds):
            need -= self._seconds[second]
            if need <= 0:
                return max(0.0, second + _WINDOW_S - now)
        return float(_WINDOW_S)


class _Account:
    def __init__(self, limits: Limits, since: float, seed: Seed, now: float) -> None:
        self.limits, self._since = limits, since
        self.requests, self.tokens = _Window(), _Window()
        self.held_usd, self.spent_usd = 0.0, seed.usd
        self._period = self._index(now)
        for at, requests, tokens in seed.recent:
            self.requests.add(at, requests, now)
            self.tokens.add(at, tokens, now)

    def _index(self, now: float) -> int:
        period = self.limits.period_s
        return 0 if period is None else int((now - self._since) // period)

    def pass_to(self, now: float) -> None:
        self.requests.pass_to(now)
        self.tokens.pass_to(now)
        if self._index(now) != self._period:
            self._period, self.spent_usd = self._index(now), 0.0

    def refusal(
        self, scope: str, amount: Amount, now: float, *, paid: bool
    ) -> LimitExceeded | None:
        self.pass_to(now)
        limits = self.limits
        for name, bound, window, wanted in (
            ("rpm", limits.rpm, self.requests, amount.requests),
            ("tpm", limits.tpm, self.tokens, amount.tokens),
        ):
            if bound is not None and window.total + wanted > bound:
                never = wanted > bound
                wait = None if never else window.frees(window.total + wanted - bound, now)
                return LimitExceeded(scope, name, bound, wanted, wait)
        if limits.max_usd is not None and paid:
            committed = self.spent_usd + self.held_usd
            # Where all is spent, also what costs nothing is refused: a budget that ran out is out.
            if committed + amount.usd > limits.max_usd + _NOTHING_USD or (
                self.spent_usd >= limits.max_usd
            ):
                return LimitExceeded(
                    scope, "usd", limits.max_usd, amount.usd, self._until_next(now)
                )
        return None

    def _until_next(self, now: float) -> float | None:
        period = self.limits.period_s
        if period is None:
            return None
        return self._since + (self._index(now) + 1) * period - now


@dataclass(frozen=True)
class _Held:
    scopes: tuple[str, ...]
    amount: Amount
    at: float


class Ledger:
    """Accounts by scope, and the reservations that are not settled."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._accounts: dict[str, _Account] = {}
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._entered: OrderedDict[str, float] = OrderedDict()
        """Settlements of reservations from before this ledger, which may arrive twice."""
        self._seeding: dict[str, list[tuple[float, Amount]]] = {}
        """What was settled of an account, and when it was reserved, while its seed is read."""

    def begin_seed(self, scope: str) -> None:
        """Keep what is settled of `scope` from now until `open`: its seed may not have it."""
        self._seeding[scope] = []

    def end_seed(self, scope: str) -> None:
        """Keep it no longer; for a seed that could not be read."""
        self._seeding.pop(scope, None)

    def open(self, scope: str, limits: Limits, since: float, seed: Seed, now: float) -> None:
        """Bound `scope` from now on; what is reserved of it now stays so."""
        account = _Account(limits, since, seed, now)
        self._accounts[scope] = account
        for at, used in self._seeding.pop(scope, ()):
            account.requests.add(at, used.requests, now)
            account.tokens.add(at, used.tokens, now)
            account.spent_usd += used.usd
        for held in self._held.values():
            if scope in held.scopes:
                account.requests.add(held.at, held.amount.requests, now)
                account.tokens.add(held.at, held.amount.tokens, now)
                account.held_usd += held.amount.usd

    def close(self, scope: str) -> None:
        """Bound `scope` no longer."""
        self._accounts.pop(scope, None)

    def reserve(
        self,
        number: str,
        scopes: Iterable[str],
        amount: Amount,
        now: float,
        *,
        paid: bool = True,
    ) -> Room | LimitExceeded:
        """Hold `amount` in every account of `scopes`, or in none and say which one is full. What is
        not `paid` needs no money to be left."""
        self._give_up_on_the_lost(now)
        held = _Held(tuple(scopes), amount, now)
        accounts = self._of(held.scopes)
        for scope, account in accounts.items():
            if (refusal := account.refusal(scope, amount, now, paid=paid)) is not None:
                return refusal
        self._held[number] = held
        for account in accounts.values():
            account.requests.add(now, amount.requests, now)
            account.tokens.add(now, amount.tokens, now)
            account.held_usd += amount.usd
        return _tightest(accounts.values())

    def settle(
        self, number: str, scopes: Iterable[str], used: Amount, at: float, now: float
    ) -> None:
        """Replace a reservation made at `at` by what was used.

        One that was made before this ledger began is entered as used; any other that is not held
        was settled or given up before.
        """
        held = self._held.pop(number, None)
        if held is None:
            if at >= self._began or number in self._entered:
                return
            self._entered[number] = now
            held = _Held(tuple(scopes), Amount(), at)
        self._keep_for_seeds(held, used)
        for account in self._of(held.scopes).values():
            account.pass_to(now)
            account.requests.add(held.at, used.requests - held.amount.requests, now)
            account.tokens.add(held.at, used.tokens - held.amount.tokens, now)
            self._spend(account, held, used.usd)

    def _keep_for_seeds(self, held: _Held, used: Amount) -> None:
        for scope in held.scopes:
            if scope in self._seeding:
                self._seeding[scope].append((held.at, used))

    def _spend(self, account: _Account, held: _Held, usd: float) -> None:
        account.held_usd = max(0.0, account.held_usd - held.amount.usd)
        account.spent_usd += usd

    def _give_up_on_the_lost(self, now: float) -> None:
        while self._entered and next(iter(self._entered.values())) + _LOST_S <= now:
            self._entered.popitem(last=False)
        while self._held:
            number, held = next(iter(self._held.items()))
            if held.at + _LOST_S > now:
                return
            del self._held[number]
            self._keep_for_seeds(held, held.amount)
            for account in self._of(held.scopes).values():
                self._spend(account, held, held.amount.usd)

    def _of(self, scopes: tuple[str, ...]) -> dict[str, _Account]:
        return {scope: self._accounts[scope] for scope in scopes if scope in self._accounts}


def _tightest(accounts: Iterable[_Account]) -> Room:
    room = Room()
    for account in accounts:
        rpm, tpm = account.limits.rpm, account.limits.tpm
        if rpm is not None:
            left = max(0, rpm - account.requests.total)
            if room.remaining_requests is None or left < room.remaining_requests:
                room = Room(rpm, left, room.limit_tokens, room.remaining_tokens)
        if tpm is not None:
            left = max(0, tpm - account.tokens.total)
            if room.remaining_tokens is None or left < room.remaining_tokens:
                room = Room(room.limit_requests, room.remaining_requests, tpm, left)
    return room
