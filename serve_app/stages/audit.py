"""Audit: the durable, chained record of each request, and the report of usage and edge cases.

A batch is one fsync. Usage and label tasks go to the registry after the record is durable, off the
request's path: while the registry is down no answer waits, and the log still has what it missed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from msgspec import structs

from cluster.audit import ChainWriter, Head
from cluster.budget.metering import UsageBatch
from cluster.governance.findings import OutOfTime, Tick, unlimited
from cluster.governance.structured import mask_text
from cluster.governance.vault import TooManyValues, Vault
from cluster.records.labels import LabelTask
from cluster.records.trace import (
    FeedbackTrace,
    Refusal,
    RefusalTrace,
    RequestTrace,
    Span,
    Trace,
    document,
    metered,
)
from cluster.records.usage import MeteredUsage
from cluster.text import normalise
from serve_app.long_texts import Busy, LongTexts, is_long
from serve_app.pipeline.steps import MASK
from serve_app.protocol import Envelope, last_user_text, request_trace
from serve_app.stages.governance import WITHHELD
from serve_app.tasks import spawn_detached

logger = logging.getLogger(__name__)


class Meter(Protocol):
    """The part of the usage contract that receives what was recorded."""

    async def register_writer(self, writer: str) -> None: ...
    async def record(self, writer: str, head: Head, rows: list[MeteredUsage]) -> int: ...


class LabelQueue(Protocol):
    """The part of the labels contract that receives edge cases."""

    async def enqueue(self, tasks: list[LabelTask]) -> int: ...


_MAX_WAITING = 10_000
_TRACE_ID = re.compile("tr-[0-9a-f]{32}")
#: Seconds for which reports to the registry are gathered, so that it writes once.
_GATHER_S = 0.5
#: Longest that the names in one record may take to be masked; the rest of them is withheld.
_LONG_S = 1.0
#: Longest that the first record waits for its writer to be on the registry's list.
_REGISTER_S = 2.0
#: Longest time span of one usage batch, which is dated with its first entry.
_MAX_BATCH_SPAN_S = 5.0
_BATCHES_A_CALL = 256


class Audit:
    """Writes traces; then reports edge cases to the label queue, and usage to the meter."""

    def __init__(self, writer: ChainWriter, meter: Meter, labels: LabelQueue) -> None:
        self._writer, self._meter, self._labels = writer, meter, labels
        self._registered = False
        self._long = LongTexts(_LONG_S)
        self._lock = asyncio.Lock()
        self._tasks: list[LabelTask] = []
        self._usage = UsageBatch(writer.writer, writer.sequence)
        self._unsent_usage: list[UsageBatch] = []
        """Closed batches that the registry has not acknowledged."""
        self._reporting: asyncio.Task[None] | None = None

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Record every envelope before any is acknowledged."""
        now, started = time.time(), time.perf_counter()
        records = [await self._record(envelope, now) for envelope in batch]
        ms = round((time.perf_counter() - started) * 1000, 3)
        records = [_with_span(record, ms, len(batch)) for record in records]
        # A caller that goes away must not let the next batch into the chain beside this one.
        await asyncio.shield(spawn_detached(self._commit(batch, records)))
        return batch

    async def _record(self, envelope: Envelope, now: float) -> Trace:
        if envelope.event is not None:
            return _masked_event(envelope.event, now)
        found = request_trace(envelope, now)
        if not takes_long(envelope):
            return _masked(found, envelope)
        try:
            mask = partial(_masked, found, envelope)
            return await self._long.run(envelope.tenant, mask)
        except Busy:
            return _masked(found, envelope, _expired)

    async def _commit(self, batch: list[Envelope], records: list[Trace]) -> None:
        async with self._lock:
            if not self._registered and not self._writer.sequence:
                await self._register()
            await asyncio.to_thread(self._writer.append, list(map(document, records)))
            for record in records:
                # While the registry is unreachable, batches are closed every few seconds, so that
                # each keeps its own time and is billed at the price then in force.
                if record.recorded_at - self._usage.since > _MAX_BATCH_SPAN_S:
                    self._close_usage()
                self._usage.add(metered(record))
        for task in filter(None, map(label_task, batch)):
            if len(self._tasks) >= _MAX_WAITING:
                logger.warning(
                    "label queue is behind; trace %s stays in the log only", task.trace_id
                )
            else:
                self._tasks.append(task)
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.ensure_future(self._report())

    async def _register(self) -> None:
        """Register the writer before it writes; while the control plane is down, requests wait for
        that no longer than `_REGISTER_S`."""
        try:
            asked = self._meter.register_writer(self._writer.writer)
            await asyncio.wait_for(asked, _REGISTER_S)
            self._registered = True
        except Exception:  # `_report` tries again
            logger.warning("the writer %s is not registered yet", self._writer.writer)

    async def _report(self) -> None:
        """Report to the registry until nothing is left to report."""
        await asyncio.sleep(_GATHER_S)
        if not self._registered:
            await _until_delivered(partial(self._meter.register_writer, self._writer.writer))
            self._registered = True
        while self._tasks or self._unsent_usage or self._usage.after > self._usage.first:
            tasks, self._tasks = self._tasks[:256], self._tasks[256:]
            self._close_usage()
            batches = self._unsent_usage[:_BATCHES_A_CALL]
            self._unsent_usage = self._unsent_usage[_BATCHES_A_CALL:]
            # At-least-once delivery: a retry sends the same ranges, which the meter deduplicates.
            uses = [row for batch in batches for row in batch.rows()]
            if tasks:
                await _until_delivered(partial(self._labels.enqueue, tasks))
            if batches:
                writer, head = self._writer.writer, self._writer.head
                record = partial(self._meter.record, writer, head, uses)
                # Registered again before a retry: a restored registry may not have the writer.
                await _until_delivered(record, partial(self._meter.register_writer, writer))
            await asyncio.sleep(_GATHER_S)

    def _close_usage(self) -> None:
        if self._usage.after > self._usage.first:
            self._unsent_usage.append(self._usage)
            self._usage = UsageBatch(self._writer.writer, self._usage.after)


def takes_long(envelope: Envelope) -> bool:
    """Whether what is masked here of an envelope is a long text."""
    if not (envelope.attributes or envelope.metadata or envelope.warnings):
        return False
    named = (text for field in _unmasked(envelope) for text in getattr(envelope, field).values())
    return is_long((*named, *envelope.warnings))


def _unmasked(envelope: Envelope) -> tuple[str, ...]:
    """Fields that no other stage has masked: metadata where governance did not see it."""
    seen = any(span.name == MASK.stage and span.outcome == "ok" for span in envelope.spans)
    return ("attributes",) if seen else ("attributes", "metadata")


def _expired() -> None:
    raise OutOfTime


def _with_span(record: Trace, ms: float, batch: int) -> Trace:
    """A request with audit's own span. The write itself is still to come: the gateway times it and
    reports it to the client."""
    if not isinstance(record, RequestTrace):
        return record
    start = (record.recorded_at - record.received_at) * 1000
    span = Span("audit", ms, round(start, 3), batch, "recorded")
    return structs.replace(record, spans=[*record.spans, span])


def _masked_event(event: RefusalTrace | FeedbackTrace, now: float) -> Trace:
    """An event as it is recorded, with what its caller chose of it masked."""
    clean = partial(_clean, vault=Vault())
    if isinstance(event, FeedbackTrace):
        about = event.about if _TRACE_ID.fullmatch(event.about) else clean(event.about)
        return structs.replace(event, recorded_at=now, about=about, version=clean(event.version))
    return structs.replace(
        event,
        recorded_at=now,
        requested_model=clean(event.requested_model),
        path=clean(event.path),
        refusal=_clean_refusal(event.refusal, clean),
    )


def _clean(text: str, name: str = "", *, vault: Vault) -> str:
    try:
        return mask_text(normalise(text), vault, name=name)
    except (TooManyValues, OutOfTime):  # one record's texts must not cost its batch
        return WITHHELD


def _clean_refusal(refusal: Refusal, clean: Callable[[str], str]) -> Refusal:
    """`param` may be a key of the caller's own JSON, as `message` may quote it."""
    param = refusal.param and clean(refusal.param)
    return structs.replace(refusal, message=clean(refusal.message), param=param)


def _masked(record: RequestTrace, envelope: Envelope, tick: Tick = unlimited) -> RequestTrace:
    """The record with what no other stage masks: names a caller chose, and what refused it.

    Messages and answers are masked by governance, which is closed where it fails.
    """
    clean = partial(_clean, vault=Vault(envelope.placeholders, tick))

    def cleaned(texts: dict[str, str]) -> dict[str, str]:
        return {clean(name): clean(text, name) for name, text in texts.items()}

    model = clean(envelope.model)
    named = {field: cleaned(getattr(envelope, field)) for field in _unmasked(envelope)}
    refusal = record.refusal
    return structs.replace(
        record,
        requested_model=model,
        warnings=[clean(text) for text in envelope.warnings],
        refusal=refusal and _clean_refusal(refusal, clean),
        **named,
    )


async def _until_delivered(
    call: Callable[[], Awaitable[object]],
    before_retry: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Call until it succeeds; `before_retry` is called before each try but the first."""
    tries = 0
    while True:
        try:
            if tries and before_retry is not None:
                await before_retry()
            tries += 1
            await call()
            return
        except Exception:  # the control plane may restart; the report is kept
            logger.exception("could not report to the registry what was recorded; trying again")
            await asyncio.sleep(1.0)


def label_task(envelope: Envelope) -> LabelTask | None:
    """What an expert should see of this request, or None where it is no edge case."""
    verdicts, generation = envelope.verdicts, envelope.generation
    if verdicts is None or generation is None or not (verdicts.reasons or verdicts.sampled):
        return None
    return LabelTask(
        trace_id=envelope.trace_id,
        tenant=envelope.tenant,
        reason=verdicts.reasons[0] if verdicts.reasons else "sampled",
        adapter=envelope.route.adapter or "" if envelope.route else "",
        version=generation.version,
        text=last_user_text(envelope.messages),
        answer=envelope.answer,
        confidence=verdicts.confidence,
        prompt=tuple(envelope.prompt),
        metadata=envelope.metadata,
    )
