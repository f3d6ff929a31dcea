"""Audit: the durable, chained record of each request, and the hand-over of edge cases.

A batch is one fsync. The registry is told after the record is durable, and off the request's path:
while it is down no answer waits, and the traces still tell what it missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from cluster.audit import ChainWriter, Head
from cluster.governance.findings import OutOfTime, Tick, unlimited
from cluster.governance.structured import mask_text
from cluster.governance.vault import TooManyValues, Vault
from cluster.registry.labels import LabelTask
from cluster.registry.usage import Tally, TokenUse
from cluster.text import normalise
from serve_app.long_texts import Busy, LongTexts, is_long
from serve_app.protocol import Envelope, Span, last_user_text, trace_record
from serve_app.stages.governance import WITHHELD
from serve_app.steps import MASK
from serve_app.tasks import apart

logger = logging.getLogger(__name__)


class Registry(Protocol):
    """The part of the control plane that receives what was recorded."""

    async def register_writer(self, writer: str) -> None: ...
    async def enqueue_labels(self, tasks: list[LabelTask]) -> int: ...
    async def tell_use(self, writer: str, head: Head, uses: list[TokenUse]) -> int: ...


_MAX_WAITING = 10_000
#: What the registry is told is gathered for so long: experts and bills do not mind, and it writes
#: once.
_GATHER_S = 0.5
#: Longest that the names in one record may take to be masked; the rest of them is withheld.
_LONG_S = 1.0
#: Longest that the first record waits for its writer to be on the registry's list.
_REGISTER_S = 2.0
#: Longest that what was used counts as used at one moment; how many of those are told together.
_LONGEST_S, _AT_ONCE = 5.0, 256


class Audit:
    """Writes traces; then tells the label queue of edge cases, and the meter of what was used."""

    def __init__(self, writer: ChainWriter, registry: Registry) -> None:
        self._writer, self._registry = writer, registry
        self._registered = False
        self._long = LongTexts(_LONG_S)
        self._lock = asyncio.Lock()
        self._tasks: list[LabelTask] = []
        self._tally = Tally(writer.writer, writer.sequence)
        self._tallies: list[Tally] = []
        """Those that are closed, and not told yet."""
        self._told: asyncio.Task[None] | None = None

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Record every envelope before any is acknowledged."""
        now, started = time.time(), time.perf_counter()
        records = [
            await self._record(envelope, now)
            if takes_long(envelope)
            else _masked(trace_record(envelope, now), envelope)
            for envelope in batch
        ]
        for record in records:
            # The write itself is still to come; the gateway times it and tells the client.
            ms = round((time.perf_counter() - started) * 1000, 3)
            record["spans"].append(vars(Span("audit", ms, len(batch), "recorded")))
        # A caller that goes away must not let the next batch into the chain beside this one.
        await asyncio.shield(apart(self._commit(batch, records)))
        return batch

    async def _record(self, envelope: Envelope, now: float) -> dict[str, Any]:
        found = trace_record(envelope, now)
        try:
            mask = partial(_masked, found, envelope)
            return await self._long.run(envelope.tenant, mask)
        except Busy:
            return _masked(found, envelope, _expired)

    async def _commit(self, batch: list[Envelope], records: list[dict[str, Any]]) -> None:
        async with self._lock:
            if not self._registered and not self._writer.sequence:
                await self._introduce()
            await asyncio.to_thread(self._writer.append, records)
            for record in records:
                # Of what waits while the registry is away, each part keeps its time and its price.
                if record["recorded_at"] - self._tally.since > _LONGEST_S:
                    self._close_tally()
                self._tally.add(record)
        for task in filter(None, map(label_task, batch)):
            if len(self._tasks) >= _MAX_WAITING:
                logger.warning(
                    "label queue is behind; trace %s stays in the log only", task.trace_id
                )
            else:
                self._tasks.append(task)
        if self._told is None or self._told.done():
            self._told = asyncio.ensure_future(self._tell())

    async def _introduce(self) -> None:
        """Have the writer on the registry's list before it writes; while the control plane is away
        requests do not wait for that for long."""
        try:
            asked = self._registry.register_writer(self._writer.writer)
            await asyncio.wait_for(asked, _REGISTER_S)
            self._registered = True
        except Exception:  # `_tell` asks again until it is heard
            logger.warning("the registry does not know the writer %s yet", self._writer.writer)

    async def _tell(self) -> None:
        """Tell the registry what has come together, until there is nothing left to tell."""
        await asyncio.sleep(_GATHER_S)
        if not self._registered:
            await _until_heard(partial(self._registry.register_writer, self._writer.writer))
            self._registered = True
        while self._tasks or self._tallies or self._tally.after > self._tally.first:
            tasks, self._tasks = self._tasks[:256], self._tasks[256:]
            self._close_tally()
            told, self._tallies = self._tallies[:_AT_ONCE], self._tallies[_AT_ONCE:]
            # Told again as they are until they are heard: what is told twice then counts once.
            uses = [use for tally in told for use in tally.uses()]
            if tasks:
                await _until_heard(partial(self._registry.enqueue_labels, tasks))
            if told:
                writer, head = self._writer.writer, self._writer.head
                tell = partial(self._registry.tell_use, writer, head, uses)
                # Again each time: a registry that was restored may have forgotten the writer.
                await _until_heard(tell, partial(self._registry.register_writer, writer))
            await asyncio.sleep(_GATHER_S)

    def _close_tally(self) -> None:
        if self._tally.after > self._tally.first:
            self._tallies.append(self._tally)
            self._tally = Tally(self._writer.writer, self._tally.after)


def takes_long(envelope: Envelope) -> bool:
    """Whether what is masked here of an envelope is a long text."""
    if not (envelope.attributes or envelope.metadata or envelope.warnings):
        return False
    named = (text for field in _unmasked(envelope) for text in getattr(envelope, field).values())
    return is_long((*named, *envelope.warnings))


def _unmasked(envelope: Envelope) -> tuple[str, ...]:
    """Fields that no other stage has masked: metadata where governance did not see it."""
    seen = any(span.stage == MASK.stage and span.outcome == "ok" for span in envelope.spans)
    return ("attributes",) if seen else ("attributes", "metadata")


def _expired() -> None:
    raise OutOfTime


def _masked(record: dict[str, Any], envelope: Envelope, tick: Tick = unlimited) -> dict[str, Any]:
    """The record with what no other stage masks: names a caller chose, and what refused it.

    Messages and answers are masked by governance, which is closed where it fails.
    """
    vault = Vault(envelope.placeholders, tick)

    def clean(text: str, name: str = "") -> str:
        try:
            return mask_text(normalise(text), vault, name=name)
        except (TooManyValues, OutOfTime):  # one record's names must not cost its batch
            return WITHHELD

    record["requested_model"] = clean(envelope.model)
    for field in _unmasked(envelope):
        record[field] = {clean(name): clean(text, name) for name, text in record[field].items()}
    record["warnings"] = [clean(text) for text in envelope.warnings]
    if record["block"] is not None:
        record["block"] = {**record["block"], "message": clean(record["block"]["message"])}
    return record


async def _until_heard(
    tell: Callable[[], Awaitable[object]], first: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Tell until it is heard; from the second try on, what has to be told `first` before it."""
    tries = 0
    while True:
        try:
            if tries and first is not None:
                await first()
            tries += 1
            await tell()
            return
        except Exception:  # the control plane restarts; what it missed is kept until it is back
            logger.exception("could not report to the registry what was recorded; trying again")
            await asyncio.sleep(1.0)


def label_task(envelope: Envelope) -> LabelTask | None:
    """What an expert should see of this request, or None where nobody needs to."""
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
