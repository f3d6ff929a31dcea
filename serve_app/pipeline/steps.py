"""The steps of the pipeline: which fields of an envelope each reads and writes, and how one is run.

Only these fields cross to a stage and back, so a call costs what its stage needs, two steps that
write different fields can run side by side, and a stage that answers too late changes nothing.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from cluster.records.trace import Refusal
from serve_app.protocol import Envelope, Sampling, Stage

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """One call of a stage. `name` tells the two calls of governance apart."""

    name: str
    stage: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    once: bool = False
    """A failed batch is not tried again one by one: its effect outlives the call."""
    gathers: bool = False
    """A batch costs much less than its envelopes one by one, also within the process."""

    def take(self, envelope: Envelope) -> Row:
        """What the stage gets to see of `envelope`."""
        return tuple([getattr(envelope, name) for name in self.reads])

    def put(self, envelope: Envelope, row: Row) -> None:
        """Write what the stage returned; an earlier refusal and earlier warnings stay."""
        for name, value in zip(self.writes, row, strict=False):
            setattr(envelope, name, value)
        refusal, warnings = row[-2:]
        envelope.refusal = envelope.refusal or refusal
        envelope.warnings.extend(warnings)

    def open(self, row: Row) -> Envelope:
        """An envelope that holds only what the stage reads."""
        envelope = Envelope("", 0.0, "", {}, "", [], _SAMPLING)
        for name, value in zip(self.reads, row, strict=True):
            setattr(envelope, name, value)
        if "warnings" in self.reads:
            envelope.warnings = list(envelope.warnings)
        return envelope

    def close(self, envelope: Envelope, said: int) -> Row:
        """What goes back: written fields, the refusal, and the warnings after the first `said`."""
        written = [getattr(envelope, name) for name in self.writes]
        return (*written, envelope.refusal, envelope.warnings[said:])


_SAMPLING = Sampling()
#: What no stage but the one that makes it gets to see: values in clear, and what only the gateway
#: needs.
_KEPT = frozenset(
    {"vault", "embedding", "override", "user", "models", "counting", "tools", "structured"}
    | {"listed", "shown"}
)
_WHOLE = tuple(field.name for field in dataclasses.fields(Envelope) if field.name not in _KEPT)

DATA_PREP = Step(
    "data_prep",
    "data_prep",
    ("tenant", "messages", "tools", "metadata"),
    ("messages", "tools", "metadata"),
)
MASK = Step(
    "governance",
    "governance",
    ("tenant", "messages", "tools", "metadata", "placeholders"),
    ("messages", "tools", "metadata", "vault", "masked", "placeholders"),
)
ROUTE = Step("routing", "routing", ("messages", "model"), ("embedding", "route"), gathers=True)
POLICY = Step(
    "policy",
    "policy",
    ("messages", "attributes"),
    ("rules", "conflicts", "constraints", "override"),
)
CONTEXT = Step(
    "context",
    "context",
    ("tenant", "messages", "embedding", "route", "constraints", "conflicts", "placeholders"),
    ("snippets", "prompt", "vault", "placeholders"),
)
GUARD = Step(
    "governance_out",
    "governance",
    ("tenant", "generation", "constraints", "conflicts", "placeholders", "structured", "listed"),
    ("generation", "answer", "shown", "conflicts"),
)
MONITOR = Step("monitoring", "monitoring", ("trace_id", "generation", "route"), ("verdicts",))
AUDIT = Step("audit", "audit", _WHOLE, (), once=True, gathers=True)

#: Entries run in turn; the steps of one entry run concurrently.
BEFORE: tuple[tuple[Step, ...], ...] = ((DATA_PREP,), (MASK,), (ROUTE, POLICY), (CONTEXT,))
AFTER: tuple[tuple[Step, ...], ...] = ((GUARD, MONITOR),)
STEPS = {step.name: step for group in (*BEFORE, *AFTER, (AUDIT,)) for step in group}


@dataclass(frozen=True)
class Fault:
    """A stage could not do its work on one envelope; the failure rule decides what that costs."""

    reason: str


async def run(stage: Stage, step: Step, rows: list[Row], deadlines: list[float]) -> list[Any]:
    """Run `stage` on `rows`; each result is a row of `step` or that envelope's own `Fault`.

    An envelope whose deadline (seconds since the epoch) has passed is not worked on: its caller
    has gone on without it.
    """
    now = time.time()
    results: list[Any] = [Fault("late") if now > deadline else None for deadline in deadlines]
    alive = [index for index, result in enumerate(results) if result is None]
    if alive:
        for index, result in zip(
            alive, await _attempt(stage, step, [rows[index] for index in alive]), strict=True
        ):
            results[index] = result
    return results


async def _attempt(stage: Stage, step: Step, rows: list[Row]) -> list[Any]:
    try:
        return await _call(stage, step, rows)
    except Exception as error:  # one bad envelope must not fail its batch: each is tried alone
        if len(rows) == 1 or step.once:
            return [Fault(type(error).__name__)] * len(rows)
    return [result for row in rows for result in await _attempt(stage, step, [row])]


async def _call(stage: Stage, step: Step, rows: list[Row]) -> list[Any]:
    envelopes = [step.open(row) for row in rows]
    said = [len(envelope.warnings) for envelope in envelopes]
    done = await stage(envelopes)
    if len(done) != len(rows):
        raise RuntimeError(f"stage {step.stage} returned {len(done)} of {len(rows)}")
    return [step.close(envelope, count) for envelope, count in zip(done, said, strict=True)]


def settle(envelope: Envelope) -> None:
    """Bring together what steps that ran side by side said of the same matter."""
    route, verdicts, override = envelope.route, envelope.verdicts, envelope.override
    if route is not None and override is not None:
        envelope.route = structs.replace(
            route,
            adapter=override.adapter,
            instead_of=route.adapter,
            reason=f"policy {override.rule}: {override.adapter} instead of {route.adapter}",
        )
        envelope.override = None
    if verdicts is not None and envelope.conflicts and "policy_conflict" not in verdicts.reasons:
        reasons = [*verdicts.reasons, "policy_conflict"]
        envelope.verdicts = structs.replace(verdicts, reasons=reasons, sampled=False)


def unavailable(stage: str) -> Refusal:
    """The refusal of a request whose stage is closed and down."""
    return Refusal(503, "stage_unavailable", f"stage {stage} is unavailable; try again")
