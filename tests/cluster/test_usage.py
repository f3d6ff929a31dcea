"""Metering: the bill and the audit log agree to the token, whatever was lost or told twice."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from cluster.audit import ChainWriter, Head, Place, read_pieces, read_traces
from cluster.budget.metering import UsageBatch
from cluster.budget.prices import Price, PriceBook
from cluster.errors import ConflictError
from cluster.records.trace import RequestTrace, document, metered
from cluster.records.usage import MeteredUsage, TokenUsage
from cluster.registry import access, events, live_hours, usage, writers
from cluster.registry.db import open_database
from tests.fakes.traces import request_trace


@pytest.fixture
def tx(url: str) -> Iterator[Session]:
    engine = open_database(url)
    with Session(engine) as tx, tx.begin():
        for writer in ("w", "w1", "w2", "other"):
            writers.register(tx, writer, changes=False, now=0.0)
        yield tx
    engine.dispose()


def _trace(number: int, tenant: str = "acme", version: str = "care@1", **more: Any) -> RequestTrace:
    used = {"usage": TokenUsage(version, 10 + number, 3), **more}
    return request_trace(f"tr-{number}", tenant=tenant, key_id=f"k-{tenant}", **used)


def _told(writer: str, traces: list[RequestTrace], first: int = 0) -> list[MeteredUsage]:
    tally = UsageBatch(writer, first)
    for trace in traces:
        tally.add(metered(trace))
    return tally.rows()


def _tokens(tx: Session, tenant: str) -> tuple[int, int]:
    lines = usage.bill(tx, tenant, 0.0, 100.0, PriceBook())["lines"]
    read = sum(line["input_tokens"] for line in lines)
    return read, sum(line["output_tokens"] for line in lines)


def test_a_range_reported_twice_counts_once(tx: Session) -> None:
    rows = _told("w", [_trace(0), _trace(1), _trace(2, tenant="rival")])
    assert usage.insert(tx, rows) == 2
    assert usage.insert(tx, rows) == 0
    assert _tokens(tx, "acme") == (21, 6)
    assert _tokens(tx, "rival") == (12, 3)
    assert usage.insert(tx, _told("other", [_trace(0)])) == 1


def test_refusals_cost_nothing_and_cached_answers_no_tokens(tx: Session) -> None:
    nothing = TokenUsage("care@1", 0, 0)
    traces = [_trace(0, usage=None), _trace(1, cache="hit", usage=nothing), _trace(2)]
    usage.insert(tx, _told("w", traces))
    [line] = usage.bill(tx, "acme", 0.0, 100.0, PriceBook())["lines"]
    assert (line["requests"], line["cached"]) == (2, 1)
    assert (line["input_tokens"], line["output_tokens"]) == (12, 3)


@pytest.mark.parametrize("seed", range(30))
def test_bill_and_log_agree_to_the_token(
    tx: Session, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random.Random(seed)
    # From less than a trace to more than all of them.
    monkeypatch.setattr("cluster.audit._PIECE", drawn.choice((1, 300, 2000, 1 << 20)))
    folder, read = tmp_path / "audit", dict[str, Place]()
    for name in ("w1", "w2"):
        writer, tally = ChainWriter(folder, name), UsageBatch(name, 0)
        for number in range(drawn.randint(1, 60)):
            blocked: dict[str, Any] = {"usage": None} if drawn.random() < 0.2 else {}
            tenant = drawn.choice(("acme", "rival"))
            trace = _trace(number, tenant, f"care@{drawn.randint(1, 2)}", **blocked)
            writer.append([document(trace)])
            tally.add(metered(trace))
            fate = drawn.random()
            if fate < 0.25:
                told = tally.rows()
                tally = UsageBatch(name, tally.after)
                if drawn.random() < 0.6:  # else it is lost on its way
                    usage.insert(tx, told)
                if drawn.random() < 0.3:
                    usage.insert(tx, told)
            elif fate < 0.35:  # somebody reads the log while a stretch is still to be told
                usage.reconcile(lambda: nullcontext(tx), folder, read)
        writer.close()
    usage.reconcile(lambda: nullcontext(tx), folder, read)
    assert read.keys() == {"w1", "w2"}
    for name, place in read.items():
        assert list(read_pieces(folder, name, place)) == []
        whole = list(read_pieces(folder, name))
        assert whole[-1].after == place
        assert [usage.find_missing(tx, piece) for piece in whole] == [[]] * len(whole)
    logged: Counter[str] = Counter()
    for found in read_traces(folder):
        assert isinstance(found, RequestTrace)
        if found.usage is not None:
            logged[found.tenant] += found.usage.input_tokens
    for tenant in ("acme", "rival"):
        assert _tokens(tx, tenant)[0] == logged[tenant]


def test_a_bill_is_priced_line_by_line(tx: Session) -> None:
    usage.insert(tx, _told("w", [_trace(0), _trace(0, version="base-model")]))
    usage.work(tx, usage.TRAINING, "care@1", tenant="acme", amount=1800.0, at=50.0)
    usage.work(tx, usage.TRAINING, "care@1", tenant="acme", amount=1800.0, at=50.0)
    usage.work(tx, usage.LABELS, "tr-1", tenant="acme", amount=1, at=50.0)
    prices = PriceBook(
        default=Price(input=1.0, output=2.0),
        adapters={"care": Price(input=100.0, output=0.0)},
        training_hour=4.0,
        label=0.5,
    )
    bill = usage.bill(tx, "acme", 0.0, 100.0, prices)
    assert {line["version"]: line["usd"] for line in bill["lines"]} == {
        "base-model": 16e-6,
        "care@1": 1000e-6,
    }
    assert bill["usd"] == pytest.approx(2.0 + 0.5 + 0.001016)
    assert usage.bill(tx, "acme", 51.0, 100.0, prices)["usd"] == 0
    assert usage.bill(tx, "nobody", 0.0, 100.0, prices)["lines"] == []


def test_an_unregistered_writer_is_on_no_bill(tx: Session, tmp_path: Path) -> None:
    forged = ChainWriter(tmp_path, "forged")
    forged.append([document(_trace(0))])
    forged.close()
    usage.reconcile(lambda: nullcontext(tx), tmp_path, {})
    assert usage.insert(tx, _told("forged", [_trace(0)])) == 0
    assert _tokens(tx, "acme") == (0, 0)
    with pytest.raises(ConflictError, match="not a registered writer"):
        writers.advance(tx, "forged", Head(1, ""), now=1.0)


def test_a_head_moves_forward_only(tx: Session) -> None:
    for head in (Head(3, "c"), Head(2, "b"), Head(5, "e")):
        writers.advance(tx, "w", head, now=1.0)
    assert writers.heads(tx, changes=False)["w"] == Head(5, "e")
    assert writers.heads(tx, changes=True) == {}


def test_what_was_lost_is_dated_when_it_was_used_and_cut_where_prices_changed(
    tx: Session, tmp_path: Path
) -> None:
    for at, price in ((0.0, 1e6), (2000.0, 2e6)):
        book = PriceBook(default=Price(input=price))
        usage.set_prices(tx, book, actor="t", now=at)
    writer = ChainWriter(tmp_path, "w")
    for at in (1000.0, 1900.0, 2100.0, 9000.0):
        writer.append([document(_trace(0, recorded_at=at))])
    writer.close()
    [piece] = read_pieces(tmp_path, "w")
    assert usage.insert(tx, usage.find_missing(tx, piece)) == 3
    found = usage.bill(tx, "acme", 0.0, 10_000.0)
    assert found["usd"] == pytest.approx(2 * 10 * 1.0 + 2 * 10 * 2.0)
    assert usage.bill(tx, "acme", 0.0, 2000.0)["usd"] == pytest.approx(20.0)


def test_adapter_hours_end_with_what_ends_the_adapter(tx: Session) -> None:
    def noted(kind: str, subject: str, at: float) -> None:
        events.note(tx, kind, subject, {}, actor="t", now=at)
        tx.flush()

    access.claim(tx, "care", "acme", actor="t", now=0.0)
    for kind, subject, at in (
        ("version.live", "care@1", 100.0),
        ("version.retired", "care@1", 200.0),
        ("version.live", "care@2", 200.0),
        ("adapter.killed", "care", 300.0),
        ("adapter.revived", "care", 400.0),
        ("version.live", "care_2@1", 0.0),
        ("version.retired", "care@2", 1000.0),
    ):
        noted(kind, subject, at)
    assert live_hours.seconds(tx, "acme", 0.0, 5000.0) == 200.0 + 600.0
    assert live_hours.seconds(tx, "acme", 150.0, 250.0) == 100.0
    assert live_hours.seconds(tx, "acme", 350.0, 450.0) == 50.0
    assert live_hours.seconds(tx, "rival", 0.0, 5000.0) == 0.0
