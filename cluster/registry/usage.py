"""Metering: what each tenant used, append-only, and the bill made of it.

Token use is told in stretches of the audit log: a row says what one tenant's key used of one
version between two places of one writer's chain. A stretch that is told twice counts once, and one
that was never told is found by reading the log, so that bill and log agree to the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cluster.audit import read_chains
from cluster.config import ConfigModel
from cluster.registry.schema import TokenRow, WorkRow


@dataclass(frozen=True)
class TokenUse:
    """What one key used of one version between `first` and before `after` of a writer's chain."""

    writer: str
    first: int
    after: int
    at: float
    tenant: str
    key_id: str
    version: str
    requests: int
    cached: int
    """Of the requests, those that the response cache answered; their tokens were not computed."""
    input_tokens: int
    output_tokens: int


class Tally:
    """Sums up a stretch of a chain. The stretch is as long as it has been added to."""

    def __init__(self, writer: str, first: int) -> None:
        self._writer, self._first, self._after = writer, first, first
        self._sums: dict[tuple[str, str, str], list[int]] = {}

    @property
    def first(self) -> int:
        """Where the stretch begins."""
        return self._first

    @property
    def after(self) -> int:
        """The place after the stretch."""
        return self._after

    def add(self, trace: dict[str, Any]) -> None:
        """Count the next trace of the chain."""
        self._after += 1
        generation = trace["generation"]
        if generation is None:
            return
        key = (trace["tenant"], trace["key_id"], generation["version"])
        cached = trace["cache"] == "hit"
        used = (0, 0) if cached else (generation["prompt_tokens"], generation["completion_tokens"])
        sums = self._sums.setdefault(key, [0, 0, 0, 0])
        for place, amount in enumerate((1, int(cached), *used)):
            sums[place] += amount

    def uses(self, at: float) -> list[TokenUse]:
        """The stretch, told."""
        return [
            TokenUse(self._writer, self._first, self._after, at, *key, *sums)
            for key, sums in self._sums.items()
        ]


def tell(tx: Session, uses: Iterable[TokenUse]) -> int:
    """Enter what was used; returns how many rows were new.

    A stretch that overlaps one that is there is left out as a whole: it was told before, or the log
    was read in between, and reading the log again finds what is missing.
    """
    stretches: dict[tuple[str, int, int], list[TokenUse]] = {}
    for use in uses:
        stretches.setdefault((use.writer, use.first, use.after), []).append(use)
    new = 0
    for (writer, first, after), rows in stretches.items():
        overlaps = (TokenRow.writer == writer, TokenRow.first < after, TokenRow.after > first)
        if tx.scalars(select(TokenRow.first).where(*overlaps).limit(1)).first() is None:
            tx.add_all(TokenRow(**asdict(use)) for use in rows)
            tx.flush()
            new += len(rows)
    return new


def work(tx: Session, kind: str, reference: str, *, tenant: str, amount: float, at: float) -> None:
    """Enter `amount` of another kind of work, such as seconds of training; once a reference."""
    if tx.get(WorkRow, (kind, reference)) is None:
        tx.add(WorkRow(kind=kind, reference=reference, tenant=tenant, amount=amount, at=at))
        tx.flush()


TRAINING, LABELS = "training_seconds", "labels"


class Price(ConfigModel):
    """What a version's tokens cost, in US dollars a million."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)


class PriceBook(ConfigModel):
    """What things cost, in US dollars."""

    default: Price = Price()
    adapters: dict[str, Price] = Field(default_factory=dict)
    """By adapter, or base model; the others cost the default."""
    training_hour: float = Field(default=0.0, ge=0)
    label: float = Field(default=0.0, ge=0)

    def tokens(self, version: str) -> Price:
        """The price of a version's tokens."""
        return self.adapters.get(version.partition("@")[0], self.default)


def bill(tx: Session, tenant: str, start: float, end: float, prices: PriceBook) -> dict[str, Any]:
    """What `tenant` used from `start` until before `end`, line by line, and what it costs."""
    sums = [
        func.sum(column)
        for column in (
            TokenRow.requests,
            TokenRow.cached,
            TokenRow.input_tokens,
            TokenRow.output_tokens,
        )
    ]
    mine = (TokenRow.tenant == tenant, TokenRow.at >= start, TokenRow.at < end)
    found = tx.execute(
        select(TokenRow.version, *sums).where(*mine).group_by(TokenRow.version)
    ).all()
    lines = []
    for version, *counts in sorted(found, key=lambda row: str(row[0])):
        requests, cached, read, written = map(int, counts)
        price = prices.tokens(version)
        lines.append(
            {
                "version": version,
                "requests": requests,
                "cached": cached,
                "input_tokens": read,
                "output_tokens": written,
                "usd": round((read * price.input + written * price.output) / 1e6, 6),
            }
        )
    trained, labelled = (_amount(tx, kind, tenant, start, end) for kind in (TRAINING, LABELS))
    extra = trained / 3600 * prices.training_hour + labelled * prices.label
    return {
        "tenant": tenant,
        "from": start,
        "until": end,
        "lines": lines,
        "training_seconds": round(trained, 1),
        "labels": int(labelled),
        "usd": round(sum(float(str(line["usd"])) for line in lines) + extra, 6),
    }


def _amount(tx: Session, kind: str, tenant: str, start: float, end: float) -> float:
    mine = (WorkRow.kind == kind, WorkRow.tenant == tenant, WorkRow.at >= start, WorkRow.at < end)
    return float(tx.scalar(select(func.sum(WorkRow.amount)).where(*mine)) or 0.0)


def untold(tx: Session, audit: Path, now: float) -> list[TokenUse]:
    """What the log has and the meter does not: stretches that were lost on their way here."""
    found = []
    for writer, traces in read_chains(audit):
        told = select(TokenRow.first, TokenRow.after).where(TokenRow.writer == writer).distinct()
        covered = {place for first, after in tx.execute(told) for place in range(first, after)}
        tally: Tally | None = None
        for place, trace in enumerate(traces):
            if place in covered or trace["generation"] is None:
                if tally is not None:
                    found += tally.uses(now)
                tally = None
                continue
            tally = tally or Tally(writer, place)
            tally.add(trace)
        if tally is not None:
            found += tally.uses(now)
    return found
