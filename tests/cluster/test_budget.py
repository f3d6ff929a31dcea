"""Rates and budgets: no bound is ever broken, whatever is side by side, lost or restarted."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.budget.exchange import Desk, Reservation, Settlement
from cluster.budget.ledger import Amount, Ledger, LimitExceeded, Room
from cluster.budget.prices import Price, PriceBook
from cluster.control.database import Database
from cluster.control.services.ledger import LedgerService
from cluster.errors import NotFoundError
from cluster.records.keys import KeyRequest
from cluster.records.limits import Limits, Seed, key_scope, tenant_scope
from cluster.records.usage import MeteredUsage, TokenUsage
from cluster.registry import keys, limits, usage, writers

NOW = 1_000_000.0
ACME = tenant_scope("acme")


def _ledger(**bounds: float | None) -> Ledger:
    ledger = Ledger(NOW)
    ledger.open(ACME, Limits.model_validate(bounds), NOW, Seed(), NOW)
    return ledger


def test_a_minute_holds_no_more_requests_than_its_bound() -> None:
    ledger = _ledger(rpm=3)
    answers = [ledger.reserve(str(n), [ACME], Amount(1), NOW + n * 0.1) for n in range(5)]
    assert [isinstance(answer, Room) for answer in answers] == [True] * 3 + [False] * 2
    refused = answers[3]
    assert isinstance(refused, LimitExceeded)
    assert (refused.limit, refused.allowed) == ("rpm", 3)
    assert refused.retry_after_s is not None
    assert isinstance(ledger.reserve("6", [ACME], Amount(1), NOW + 60.0), LimitExceeded)
    again = ledger.reserve("7", [ACME], Amount(1), NOW + 0.3 + refused.retry_after_s)
    assert again == Room(limit_requests=3, remaining_requests=2)


def test_what_was_reserved_and_not_used_is_free_again() -> None:
    ledger = _ledger(tpm=100, max_usd=1.0)
    assert isinstance(ledger.reserve("a", [ACME], Amount(1, 90, 0.9), NOW), Room)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 20, 0.0), NOW), LimitExceeded)
    ledger.settle("a", [ACME], Amount(1, 10, 0.1), NOW, NOW + 1)
    assert ledger.reserve("b", [ACME], Amount(1, 90, 0.9), NOW + 1) == Room(
        limit_tokens=100, remaining_tokens=0
    )
    ledger.settle("b", [ACME], Amount(), NOW + 1, NOW + 1)
    ledger.settle("b", [ACME], Amount(1, 90, 0.9), NOW + 1, NOW + 1)
    assert isinstance(ledger.reserve("c", [ACME], Amount(1, 90, 0.9), NOW + 1), Room)


def test_use_beyond_the_reservation_is_a_debt() -> None:
    ledger = _ledger(tpm=100, max_usd=1.0)
    ledger.reserve("a", [ACME], Amount(1, 10, 0.1), NOW)
    ledger.settle("a", [ACME], Amount(1, 150, 1.5), NOW, NOW)
    refused = ledger.reserve("b", [ACME], Amount(1, 1, 0.0), NOW + 1)
    assert isinstance(refused, LimitExceeded)
    assert refused.limit == "tpm"
    later = ledger.reserve("b", [ACME], Amount(1, 1, 0.0), NOW + 100)
    assert isinstance(later, LimitExceeded)
    assert (later.limit, later.retry_after_s) == ("usd", None)


def test_a_budget_begins_anew_with_its_period() -> None:
    ledger = _ledger(max_usd=1.0, period_s=3600.0)
    ledger.reserve("a", [ACME], Amount(1, 0, 1.0), NOW)
    ledger.settle("a", [ACME], Amount(1, 0, 1.0), NOW, NOW)
    refused = ledger.reserve("b", [ACME], Amount(1, 0, 0.1), NOW + 600)
    assert isinstance(refused, LimitExceeded)
    assert refused.retry_after_s == pytest.approx(3000)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 0, 0.1), NOW + 3600), Room)


def test_more_than_the_bound_at_once_is_not_to_be_waited_for() -> None:
    refused = _ledger(tpm=100).reserve("a", [ACME], Amount(1, 101), NOW)
    assert isinstance(refused, LimitExceeded)
    assert refused.retry_after_s is None


def test_what_is_settled_while_an_account_is_seeded_counts() -> None:
    ledger = _ledger(max_usd=1.0)
    ledger.reserve("a", [ACME], Amount(1, 10, 0.5), NOW)
    ledger.begin_seed(ACME)
    ledger.settle("a", [ACME], Amount(1, 10, 0.5), NOW, NOW + 1)
    ledger.open(ACME, Limits(max_usd=0.9, rpm=5), NOW, Seed(), NOW + 1)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 10, 0.5), NOW + 1), LimitExceeded)
    room = ledger.reserve("b", [ACME], Amount(1, 10, 0.3), NOW + 1)
    assert isinstance(room, Room)
    assert room.remaining_requests == 3


def test_all_accounts_hold_or_none() -> None:
    ledger = _ledger(rpm=10)
    ledger.open("key:k", Limits(rpm=1), NOW, Seed(), NOW)
    assert ledger.reserve("a", [ACME, "key:k", "key:unbounded"], Amount(1), NOW) == Room(1, 0)
    for number in range(20):
        refused = ledger.reserve(f"b{number}", [ACME, "key:k"], Amount(1), NOW)
        assert isinstance(refused, LimitExceeded)
        assert refused.scope == "key:k"
    assert ledger.reserve("c", [ACME], Amount(1), NOW) == Room(10, 8)


def test_a_reservation_that_is_never_settled_counts_as_used() -> None:
    ledger = _ledger(max_usd=1.0)
    ledger.reserve("a", [ACME], Amount(1, 0, 0.9), NOW)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 0, 0.9), NOW + 10_000), LimitExceeded)
    ledger.settle("a", [ACME], Amount(1, 0, 0.0), NOW, NOW + 10_000)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 0, 0.9), NOW + 10_001), LimitExceeded)


def test_a_new_ledger_enters_what_an_older_one_had_let_in() -> None:
    ledger = _ledger(max_usd=1.0)
    for _ in range(2):  # told twice, it counts once
        ledger.settle("old", [ACME], Amount(1, 5, 0.6), NOW - 3, NOW + 1)
    ledger.settle("unknown", [ACME], Amount(1, 5, 0.6), NOW + 1, NOW + 1)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 0, 0.5), NOW + 2), LimitExceeded)
    assert isinstance(ledger.reserve("b", [ACME], Amount(1, 0, 0.4), NOW + 2), Room)


@dataclass
class _Request:
    number: str
    at: float
    ends: float
    used: Amount


@pytest.mark.parametrize("seed", range(200))
def test_no_schedule_breaks_a_bound(seed: int) -> None:
    """Requests side by side, of any length, some refused before they set out, some never settled:
    in no minute are there more requests or tokens than allowed, in no period more money."""
    drawn = random.Random(seed)
    rpm, tpm, usd = drawn.randint(2, 30), drawn.randint(50, 400), drawn.uniform(0.5, 3.0)
    period = drawn.choice((None, 300.0))
    ledger = _ledger(rpm=rpm, tpm=tpm, max_usd=usd, period_s=period)
    now, under_way, let_in = NOW, list[_Request](), list[_Request]()
    for number in range(300):
        now += drawn.expovariate(2.0) if drawn.random() < 0.9 else drawn.uniform(0, 90)
        for request in [one for one in under_way if one.ends <= now]:
            under_way.remove(request)
            ledger.settle(request.number, [ACME], request.used, request.at, now)
        tokens, cost = drawn.randint(0, 60), drawn.uniform(0, 0.2)
        wanted = Amount(1, tokens, cost)
        if isinstance(ledger.reserve(str(number), [ACME], wanted, now), LimitExceeded):
            continue
        share = drawn.random()
        used = Amount(1, int(tokens * share), cost * share)
        lost = drawn.random() < 0.05
        ends = float("inf") if lost else now + drawn.expovariate(0.1)
        under_way.append(_Request(str(number), now, ends, wanted if lost else used))
        let_in.append(under_way[-1])
    assert let_in
    for first in let_in:
        minute = [one for one in let_in if first.at <= one.at < first.at + 60]
        assert len(minute) <= rpm
        assert sum(one.used.tokens for one in minute) <= tpm
    spans = {0.0} if period is None else {(one.at - NOW) // period for one in let_in}
    for span in spans:
        mine = [one for one in let_in if period is None or (one.at - NOW) // period == span]
        assert sum(one.used.usd for one in mine) <= usd + 1e-9


def test_the_desk_prices_by_who_answers_and_reserves_for_the_dearest() -> None:
    book = PriceBook(
        default=Price(input=1e6, output=2e6), adapters={"care": Price(input=10e6, output=0.0)}
    )
    ledger = _ledger(max_usd=100.0)
    desk = Desk(ledger, book)

    def ask(number: str, model: str | None) -> Room | LimitExceeded:
        [answer] = desk.exchange([], [Reservation(number, (ACME,), model, 6, 4)], NOW)
        return answer

    assert isinstance(ask("a", "care@2"), Room)  # 60 of 100
    assert isinstance(ask("b", None), LimitExceeded)
    assert isinstance(ask("c", "base"), Room)  # 6 + 8
    desk.exchange(
        [Settlement("a", (ACME,), NOW, (TokenUsage("base", 1, 1), TokenUsage("care@2", 1, 9)))],
        [],
        NOW,
    )
    assert isinstance(ask("d", None), Room)  # 13 + 14 + 60
    assert isinstance(ask("e", "base"), LimitExceeded)
    desk.exchange([Settlement("d", (ACME,), NOW, None)], [], NOW)
    assert isinstance(ask("f", None), Room)


class Registry:
    """A registry with one key of one tenant."""

    def __init__(self, url: str, folder: Path) -> None:
        self.database = Database(url, folder)
        with self.database.write() as tx:
            writers.register(tx, "w", changes=False, now=NOW)
        self.now = NOW
        self.key = self.issue()

    def issue(self, bounds: Limits | None = None) -> str:
        with self.database.change() as tx:
            request = KeyRequest(tenant="acme", limits=bounds or Limits())
            return keys.issue(tx, request, actor="t", now=self.now).key_id

    def bound(self, scope: str, bounds: Limits) -> None:
        with self.database.change() as tx:
            limits.put(tx, scope, bounds, actor="t", now=self.now)

    def tell(self, first: int, requests: int, read: int, at: float) -> None:
        with self.database.write() as tx:
            row = MeteredUsage(
                "w", first, first + 1, at, "acme", self.key, "care@1", requests, 0, read, 0
            )
            usage.insert(tx, [row])

    def ledger(self) -> LedgerService:
        return LedgerService(self.database, lambda: None, lambda: self.now)

    def ask(self, ledger: LedgerService, scope: str = ACME, read: int = 0) -> Room | LimitExceeded:
        wanted = Reservation(f"r{random.random()}", (scope,), "care@1", read, 0)
        [answer] = asyncio.run(ledger.exchange([], [wanted]))
        return answer


@pytest.fixture
def registry(url: str, tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(url, tmp_path)
    yield registry
    registry.database.close()


def test_limits_hold_across_a_restart(registry: Registry) -> None:
    registry.bound(ACME, Limits(rpm=5, tpm=100))
    registry.tell(0, requests=4, read=80, at=NOW - 30)
    registry.tell(1, requests=9, read=90, at=NOW - 120)
    ledger = registry.ledger()
    assert isinstance(registry.ask(ledger, read=30), LimitExceeded)
    assert isinstance(registry.ask(ledger, read=20), Room)
    assert isinstance(registry.ask(ledger), LimitExceeded)


def test_money_spent_before_the_restart_stays_spent_at_the_price_it_had(
    registry: Registry,
) -> None:
    def price(usd: float) -> None:
        with registry.database.change() as tx:
            book = PriceBook(default=Price(input=usd * 1e6))
            usage.set_prices(tx, book, actor="t", now=registry.now)

    price(0.01)
    registry.bound(ACME, Limits(max_usd=1.0))
    registry.tell(0, requests=1, read=50, at=NOW + 1)  # half a dollar
    registry.now = NOW + 2
    price(0.02)
    registry.tell(1, requests=1, read=10, at=NOW + 3)  # a fifth
    registry.now = NOW + 4
    ledger = registry.ledger()
    assert isinstance(registry.ask(ledger, read=16), LimitExceeded)
    assert isinstance(registry.ask(ledger, read=14), Room)
    with registry.database.read() as tx:
        assert usage.bill(tx, "acme", 0.0, NOW + 9)["usd"] == pytest.approx(0.7)


def test_limits_are_set_changed_and_lifted(registry: Registry) -> None:
    ledger = registry.ledger()
    with pytest.raises(NotFoundError, match="no tenant"):
        registry.bound(tenant_scope("nobody"), Limits(rpm=1))
    with pytest.raises(NotFoundError, match="no key"):
        registry.bound(key_scope("nobody"), Limits(rpm=1))
    bounded = registry.issue(Limits(rpm=1))
    registry.bound(ACME, Limits(rpm=2))
    with registry.database.read() as tx:
        assert limits.scopes(tx, "acme", bounded) == (key_scope(bounded), ACME)
        assert limits.scopes(tx, "acme", registry.key) == (ACME,)
        record = next(one for one in keys.listed(tx) if one.key_id == bounded)
    assert record.limits == Limits(rpm=1)
    ledger.reopen(ACME)
    assert isinstance(registry.ask(ledger), Room)
    registry.bound(ACME, Limits(rpm=1))
    ledger.reopen(ACME)
    assert isinstance(registry.ask(ledger), LimitExceeded)  # what is under way still counts
    registry.bound(ACME, Limits())
    ledger.reopen(ACME)
    assert registry.ask(ledger) == Room()
