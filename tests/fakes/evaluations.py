"""Builders of evaluation reports."""

from __future__ import annotations

from cluster.records.evaluation import EvaluationReport, Metric, SuiteResult
from cluster.records.gate import Floor, GateRules

#: Rules that let every candidate through.
OPEN = GateRules(rules=(Floor(metric="understanding/accuracy", min=0.0),))
#: Rules that let none through.
CLOSED = GateRules(rules=(Floor(metric="understanding/accuracy", min=1.1),))


def report(
    accuracy: float = 0.9,
    rows: int = 500,
    *,
    previous: str | None = None,
    previous_accuracy: float | None = None,
    wins: int = 0,
    losses: int = 0,
) -> EvaluationReport:
    """A report of the understanding suite; without arguments, one that the default gate passes."""
    metric = Metric(value=accuracy, rows=rows, base=0.1)
    if previous is not None:
        metric = Metric(
            value=accuracy,
            rows=rows,
            base=0.1,
            previous=previous_accuracy,
            wins=wins,
            losses=losses,
        )
    metrics = {
        "accuracy": metric,
        "slot_f1": Metric(value=0.8, rows=rows),
        "unseen_accuracy": Metric(value=0.8, rows=200),
    }
    return EvaluationReport(
        suites={"understanding": SuiteResult(metrics=metrics)},
        primary="understanding/accuracy",
        previous=previous,
    )
