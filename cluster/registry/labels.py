"""The label queue: traces waiting for an expert, claims with a lease, and the labels given.

A tenant's traces are seen and labelled by that tenant's experts only, and train only its adapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import and_, func, insert, or_, select
from sqlalchemy.orm import Session

from cluster.errors import ConflictError, NotFoundError
from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault, placeholders
from cluster.records import labels as records
from cluster.records.labels import GivenLabel, LabelTask
from cluster.registry.schema import Label
from cluster.text import normalise

LEASE_S = 600.0
QUEUED, CLAIMED, LABELLED = "queued", "claimed", "labelled"


def enqueue(tx: Session, tasks: Iterable[LabelTask], now: float) -> int:
    """Add the tasks whose trace is not there yet; returns how many were new."""
    new = {task.trace_id: task for task in tasks}
    known = set(tx.scalars(select(Label.trace_id).where(Label.trace_id.in_(new))))
    rows = [
        {
            "trace_id": task.trace_id,
            "tenant": task.tenant,
            "reason": task.reason,
            "state": QUEUED,
            "task": task.model_dump(mode="json"),
            "created_at": now,
            "labelled_at": None,
        }
        for task in new.values()
        if task.trace_id not in known
    ]
    if rows:
        tx.execute(insert(Label), rows)
    return len(rows)


def claim(
    tx: Session,
    tenant: str,
    annotator: str,
    limit: int,
    now: float,
    *,
    adapters: Sequence[str] = (),
) -> list[LabelTask]:
    """Up to `limit` tasks of `tenant` for `annotator`, theirs for `LEASE_S` seconds; with
    `adapters`, of what those answered only."""
    free = or_(Label.state == QUEUED, (Label.state == CLAIMED) & (Label.claimed_until < now))
    if adapters:
        free = and_(free, Label.task["adapter"].as_string().in_(adapters))
    rows = list(
        tx.scalars(
            select(Label)
            .where(Label.tenant == tenant, free)
            .order_by(Label.created_at)
            .limit(limit)
        )
    )
    for row in rows:
        row.state, row.claimed_by, row.claimed_until = CLAIMED, annotator, now + LEASE_S
    return [LabelTask.model_validate(row.task) for row in rows]


def masked_label(label: GivenLabel, shown: Iterable[str] = ()) -> GivenLabel:
    """The label in the form in which it is kept and trains: as masked as the trace it is of.

    Placeholders of the trace, which `shown` are texts of, stay; what the expert wrote out gets
    others.
    """
    vault = Vault(placeholders([label.answer, label.rationale, *shown]))
    answer = mask_text(normalise(label.answer), vault)
    rationale = mask_text(normalise(label.rationale), vault)
    return label.model_copy(update={"answer": answer, "rationale": rationale})


def submit(tx: Session, tenant: str, labels: Iterable[GivenLabel], now: float) -> int:
    """Store the labels `tenant` gives; the same label twice is one label.

    Raises:
        NotFoundError: a trace is not in the tenant's queue.
        ConflictError: another annotator holds it or has labelled it; one's own label may be
            corrected.
    """
    count = 0
    for given in labels:
        row = tx.get(Label, given.trace_id)
        label = masked_label(given, [json.dumps(row.task)] if row is not None else ())
        if row is None or row.tenant != tenant:
            raise NotFoundError(f"trace {label.trace_id} is not in the label queue")
        if row.state == LABELLED and row.annotator != label.annotator:
            raise ConflictError(f"trace {label.trace_id} has a label of another annotator")
        if row.state == CLAIMED and row.claimed_by != label.annotator and row.claimed_until > now:
            raise ConflictError(f"trace {label.trace_id} is claimed by another annotator")
        row.state, row.adapter, row.answer = LABELLED, label.adapter, label.answer
        row.rationale, row.annotator, row.labelled_at = label.rationale, label.annotator, now
        count += 1
    return count


def labelled(tx: Session, tenant: str, adapter: str) -> list[records.Label]:
    """The labels `tenant` gave for `adapter`, as the dataset job reads them."""
    wanted = (Label.tenant == tenant, Label.adapter == adapter, Label.state == LABELLED)
    rows = tx.scalars(select(Label).where(*wanted))
    return [
        records.Label(
            trace_id=row.trace_id,
            adapter=row.adapter,
            answer=row.answer,
            rationale=row.rationale,
            annotator=row.annotator,
            reason=row.reason,
        )
        for row in rows
    ]


def counts(tx: Session, tenant: str) -> dict[str, int]:
    """How many of a tenant's tasks stand in each state and came for each reason."""
    result = {QUEUED: 0, CLAIMED: 0, LABELLED: 0}
    mine = Label.tenant == tenant
    states = select(Label.state, func.count()).where(mine).group_by(Label.state)
    for state, number in tx.execute(states):
        result[str(state)] = int(number)
    reasons = select(Label.reason, func.count()).where(mine).group_by(Label.reason)
    for reason, number in tx.execute(reasons):
        result[f"reason.{reason}"] = int(number)
    return result
