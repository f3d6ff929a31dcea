"""Gate rules by adapter, set by operators and never by the job that fits a candidate."""

from __future__ import annotations

from sqlalchemy.orm import Session

from cluster.records.gate import DEFAULT_RULES, GateRules
from cluster.registry import events
from cluster.registry.schema import GateRow


def get(tx: Session, adapter: str) -> GateRules:
    """The rules that candidates of `adapter` are judged by."""
    row = tx.get(GateRow, adapter)
    return DEFAULT_RULES if row is None else GateRules.model_validate(row.rules)


def put(tx: Session, adapter: str, rules: GateRules, *, actor: str, now: float) -> None:
    """Judge candidates of `adapter`, which may have none yet, by `rules` from now on."""
    document = rules.model_dump(mode="json")
    tx.merge(GateRow(adapter=adapter, rules=document, updated_at=now))
    events.note(tx, "gate.set", adapter, document, actor=actor, now=now)
