"""Audit: the durable, chained record of each request, and the hand-over of edge cases.

A batch is one fsync. The label queue is filled after the record is durable and off the request's
path: a queue that is down delays no answer, and the traces still tell what it missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.audit import ChainWriter
from cluster.registry.labels import LabelTask
from serve_app.protocol import Envelope, Span, last_user_text, trace_record
from serve_app.tasks import apart

logger = logging.getLogger(__name__)

Enqueue = Callable[[list[LabelTask]], Awaitable[int]]
_MAX_WAITING = 10_000
#: Label tasks of so long share a call: experts do not mind, and the registry writes once.
_GATHER_S = 0.5


class Audit:
    """Writes traces; edge cases and samples go on to the label queue."""

    def __init__(self, writer: ChainWriter, enqueue: Enqueue) -> None:
        self._writer = writer
        self._enqueue = enqueue
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Queue[LabelTask] = asyncio.Queue(_MAX_WAITING)
        self._forwarder: asyncio.Task[None] | None = None

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Record every envelope before any is acknowledged."""
        now, started = time.time(), time.perf_counter()
        records = [trace_record(envelope, now) for envelope in batch]
        for record in records:
            # The write itself is still to come; the gateway times it and tells the client.
            ms = round((time.perf_counter() - started) * 1000, 3)
            record["spans"].append(vars(Span("audit", ms, len(batch), "recorded")))
        # A caller that goes away must not let the next batch into the chain beside this one.
        await asyncio.shield(apart(self._commit(batch, records)))
        return batch

    async def _commit(self, batch: list[Envelope], records: list[dict[str, Any]]) -> None:
        async with self._lock:
            await asyncio.to_thread(self._writer.append, records)
        for envelope in batch:
            task = label_task(envelope)
            if task is None:
                continue
            if self._waiting.full():
                logger.warning(
                    "label queue is behind; trace %s stays in the log only", task.trace_id
                )
            else:
                self._waiting.put_nowait(task)
        if self._forwarder is None:
            self._forwarder = asyncio.ensure_future(self._forward())

    async def _forward(self) -> None:
        while True:
            tasks = [await self._waiting.get()]
            await asyncio.sleep(_GATHER_S)
            while not self._waiting.empty() and len(tasks) < 256:
                tasks.append(self._waiting.get_nowait())
            while True:
                try:
                    await self._enqueue(tasks)
                    break
                except Exception:  # the control plane restarts; the tasks are kept until it is back
                    logger.exception("could not enqueue %d label tasks; trying again", len(tasks))
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
