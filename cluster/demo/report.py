"""The report of a run, computed from the traces, the registry and the load generator's tally."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.quantiles import percentile
from cluster.records.adapter import AdapterRecord
from cluster.records.dataset import DatasetManifest
from cluster.records.evaluation import EvaluationReport
from cluster.records.trace import RequestTrace, Trace
from cluster.telemetry.reference import PUBLISHED_SHARES
from cluster.types import VersionState


def stage_table(traces: Iterable[Trace], audit_ms: Sequence[float]) -> dict[str, Any]:
    """Per-stage requests, latency and share, and the means of orchestration and inference.

    A record cannot hold how long its own write took, so the audit stage's times are `audit_ms`,
    as the gateway measured them around the write and reported to its clients.
    """
    times: dict[str, list[float]] = defaultdict(list)
    inference: list[float] = []
    seen: dict[str, int] = defaultdict(int)
    complete = 0
    for trace in traces:
        by_stage: dict[str, float] = defaultdict(float)
        known = trace.spans if isinstance(trace, RequestTrace) else []
        spans = [span for span in known if not span.parent]
        for span in spans:
            by_stage[span.name] += span.ms
        complete += set(PUBLISHED_SHARES) <= by_stage.keys()
        inference.append(by_stage.pop("generation", 0.0))
        by_stage.pop("audit", None)
        for stage, ms in by_stage.items():
            times[stage].append(ms)
        for name in {span.name for span in spans}:
            seen[name] += 1
    times["audit"] = list(audit_ms)
    means = {stage: sum(times[stage]) / max(1, len(times[stage])) for stage in PUBLISHED_SHARES}
    total = sum(means.values()) or 1.0
    return {
        "stages": {
            stage: {
                "requests": seen[stage],
                "p50_ms": round(percentile(times[stage], 0.50), 2),
                "p99_ms": round(percentile(times[stage], 0.99), 2),
                "share": round(means[stage] / total, 4),
                "published_share": published / 100,
            }
            for stage, published in PUBLISHED_SHARES.items()
        },
        "orchestration_ms": round(sum(means.values()), 2),
        "inference_ms": round(sum(inference) / max(1, len(inference)), 2),
        "traces_with_all_stages": complete,
    }


def adapter_rows(records: Iterable[AdapterRecord]) -> list[dict[str, Any]]:
    """One row for each version that is not a refused one."""
    rows = []
    for record in records:
        if record.state == VersionState.REJECTED:
            continue
        found = record.manifest.evaluation
        rows.append(
            {
                "name": record.id.name,
                "version": record.id.version,
                "state": record.state.value,
                **_accuracies(found),
                "previous": found.previous,
                "gate": "passed",
                "gate_reason": record.reason,
                "train_seconds": record.manifest.seconds,
                "dataset": record.manifest.dataset,
            }
        )
    return rows


def _accuracies(found: EvaluationReport) -> dict[str, Any]:
    """The demonstration's own metrics, of its understanding suite."""
    accuracy = found.headline
    metrics = found.suites["understanding"].metrics
    unseen, slots = metrics["unseen_accuracy"], metrics["slot_f1"]
    return {
        "base_accuracy": accuracy.base and round(accuracy.base, 4),
        "accuracy": round(accuracy.value, 4),
        "heldout_rows": accuracy.rows,
        "unseen_text_accuracy": round(unseen.value, 4),
        "unseen_text_rows": unseen.rows,
        "slot_f1": round(slots.value, 4),
        "previous_accuracy": accuracy.previous and round(accuracy.previous, 4),
    }


def rejected_rows(records: Iterable[AdapterRecord]) -> list[dict[str, Any]]:
    """One row for each version the gate refused."""
    return [
        {
            "name": str(record.id),
            "reason": record.reason,
            "accuracy": round(record.manifest.evaluation.headline.value, 4),
            "dataset": record.manifest.dataset,
        }
        for record in records
        if record.state == VersionState.REJECTED
    ]


def dataset_rows(manifests: Iterable[DatasetManifest]) -> list[dict[str, Any]]:
    """One row for each dataset version."""
    return [
        {
            "name": manifest.name,
            "version": manifest.version,
            "rows": manifest.rows,
            "from_traces": manifest.from_traces,
            "dropped": manifest.dropped,
        }
        for manifest in manifests
    ]
