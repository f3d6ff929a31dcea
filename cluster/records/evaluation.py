"""The evaluation report: named suites of named metrics, compared pairwise with the live version.

What a metric means is its suite's matter; nothing here knows a task. A report is written once by
the job that measured it, and judged by rules that the registry keeps (`cluster.rollout.gate`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

FORMAT = 2
#: In SQL an integer has 32 bits, and the sign test takes its time.
Count = Annotated[int, Field(ge=0, le=10_000_000)]
_NAME = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]


class Metric(BaseModel):
    """One figure of a suite, higher is better, and what it is compared with on the same rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    value: FiniteFloat
    rows: Count
    """Sample size."""
    base: FiniteFloat | None = None
    """The same of the base model without an adapter."""
    previous: FiniteFloat | None = None
    """The same of the version that was live."""
    wins: Count | None = None
    """Rows on which this version was right and the live one wrong."""
    losses: Count | None = None
    """Rows on which this version was wrong and the live one right."""


class SuiteResult(BaseModel):
    """What one suite measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    metrics: dict[_NAME, Metric] = Field(min_length=1, max_length=64)
    outcomes: str = Field(default="", max_length=64)
    """SHA-256 of the outcomes by row, which the run keeps under that name; empty where it did
    not."""


class EvaluationReport(BaseModel):
    """All that was measured of one candidate."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    suites: dict[_NAME, SuiteResult] = Field(min_length=1, max_length=64)
    primary: str = Field(max_length=128)
    """The metric that lists and cards show first, as `suite/metric`."""
    previous: str | None = Field(default=None, max_length=80)
    """Label of the version that was live, where there was one."""

    @model_validator(mode="before")
    @classmethod
    def _of_any_format(cls, found: Any) -> Any:
        if isinstance(found, dict) and "format" not in found and "heldout_rows" in found:
            return _from_format_1(found)
        return found

    @model_validator(mode="after")
    def _primary_is_there(self) -> EvaluationReport:
        if self.metric(self.primary) is None:
            raise ValueError(f"the primary metric {self.primary[:128]!r} is in none of the suites")
        return self

    def metric(self, name: str) -> Metric | None:
        """The metric named `suite/metric`, if it was measured."""
        suite, _, metric = name.partition("/")
        found = self.suites.get(suite)
        return found.metrics.get(metric) if found is not None else None

    @property
    def headline(self) -> Metric:
        """The primary metric."""
        found = self.metric(self.primary)
        assert found is not None
        return found

    def named(self) -> list[tuple[str, Metric]]:
        """Every metric by its full name, the primary one first."""
        found = [
            (f"{suite}/{name}", metric)
            for suite, result in self.suites.items()
            for name, metric in result.metrics.items()
        ]
        return sorted(found, key=lambda item: item[0] != self.primary)

    def alone(self) -> EvaluationReport:
        """The report without its comparison, for a cluster that has no such version."""
        unpaired = {"previous": None, "wins": None, "losses": None}
        suites = {
            name: suite.model_copy(
                update={
                    "metrics": {
                        key: metric.model_copy(update=unpaired)
                        for key, metric in suite.metrics.items()
                    }
                }
            )
            for name, suite in self.suites.items()
        }
        return self.model_copy(update={"suites": suites, "previous": None})


class _Format1(BaseModel):
    """The evaluation of format 1: intents and slots, and nothing else."""

    model_config = ConfigDict(extra="forbid")
    heldout_rows: Count
    accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)]
    slot_f1: Annotated[FiniteFloat, Field(ge=0, le=1)]
    unseen_rows: Count
    unseen_accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)]
    base_accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)]
    previous: str | None = None
    previous_accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    wins: Count = 0
    losses: Count = 0


def _from_format_1(found: dict[str, Any]) -> dict[str, Any]:
    old = _Format1.model_validate(found)
    accuracy: dict[str, Any] = {
        "value": old.accuracy,
        "rows": old.heldout_rows,
        "base": old.base_accuracy,
    }
    if old.previous is not None:
        accuracy |= {"previous": old.previous_accuracy, "wins": old.wins, "losses": old.losses}
    metrics = {
        "accuracy": accuracy,
        "slot_f1": {"value": old.slot_f1, "rows": old.heldout_rows},
        "unseen_accuracy": {"value": old.unseen_accuracy, "rows": old.unseen_rows},
    }
    return {
        "format": FORMAT,
        "suites": {"understanding": {"metrics": metrics}},
        "primary": "understanding/accuracy",
        "previous": old.previous,
    }
