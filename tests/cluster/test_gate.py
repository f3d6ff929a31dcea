from math import comb

import pytest
from pydantic import ValidationError

from cluster.records.evaluation import EvaluationReport, Metric, SuiteResult
from cluster.records.gate import DEFAULT_RULES, Floor, Gain, GateRules, NoRegression
from cluster.rollout.gate import judge, sign_test
from tests.fakes.evaluations import report

ACCURACY = "understanding/accuracy"
GAIN = GateRules(
    rules=(Floor(metric=ACCURACY, min=0.75, min_rows=200), Gain(metric=ACCURACY, min=0.02))
)


def _against(accuracy: float = 0.9, rows: int = 500, **changes: int) -> EvaluationReport:
    counts = {"wins": 30, "losses": 10, **changes}
    return report(accuracy, rows, previous="inventory@1", previous_accuracy=0.86, **counts)


def test_a_first_version_needs_its_floors_only() -> None:
    assert judge(report(), DEFAULT_RULES).passed
    refused = judge(report(), GateRules(rules=(Floor(metric=ACCURACY, min=0.95),)))
    assert not refused.passed
    assert "understanding/accuracy 0.900 is below the floor" in refused.reason


def test_a_gain_that_holds_passes() -> None:
    verdict = judge(_against(), GAIN)
    assert verdict.passed
    assert "gain +0.040" in verdict.reason


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (_against(0.2), "below the floor"),
        (_against(0.87), "gain +0.010 is below +0.020"),
        (_against(wins=22, losses=18), "luck"),
        (_against(rows=50), "rests on 50 rows, 200 are needed"),
    ],
)
def test_what_does_not_hold_is_refused(found: EvaluationReport, reason: str) -> None:
    verdict = judge(found, GAIN)
    assert not verdict.passed
    assert reason in verdict.reason


def test_a_metric_that_was_not_evaluated_is_no_pass() -> None:
    for rule in (
        Floor(metric="safety/refusals", min=0.0),
        Gain(metric="safety/refusals"),
        NoRegression(metric="safety/refusals"),
    ):
        verdict = judge(report(), GateRules(rules=(rule,)))
        assert (verdict.passed, verdict.reason) == (False, "safety/refusals was not evaluated")


def test_a_gain_needs_outcomes_row_by_row() -> None:
    rules = GateRules(rules=(Gain(metric="understanding/slot_f1"),))
    verdict = judge(_against(), rules)
    assert not verdict.passed
    assert "not compared with inventory@1 row by row" in verdict.reason


def test_a_regression_within_its_margin_passes() -> None:
    def with_slots(value: float) -> EvaluationReport:
        metrics = {"f1": Metric(value=value, rows=10, previous=0.8)}
        suites = {"slots": SuiteResult(metrics=metrics)}
        return EvaluationReport(suites=suites, primary="slots/f1", previous="inventory@1")

    rules = GateRules(rules=(NoRegression(metric="slots/f1", max_drop=0.05),))
    assert judge(with_slots(0.76), rules).passed
    assert judge(with_slots(0.75), rules).passed, "a drop as large as the one allowed"
    refused = judge(with_slots(0.74), rules)
    assert not refused.passed
    assert "regression of 0.060, 0.050 allowed" in refused.reason


def test_the_sign_test_is_exact() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(1, 1) == 0.75


@pytest.mark.parametrize(("wins", "losses"), [(520, 500), (500, 520), (900, 300), (300, 900)])
def test_the_sign_test_of_many_rows_is_as_good(wins: int, losses: int) -> None:
    total = wins + losses
    exact = sum(comb(total, k) for k in range(wins, total + 1)) / 2**total
    assert sign_test(wins, losses) == pytest.approx(exact, rel=1e-9)


def test_the_sign_test_of_millions_of_rows_takes_no_time() -> None:
    assert sign_test(5_000_000, 5_000_000) == pytest.approx(0.5, abs=2e-4)
    assert sign_test(10_000_000, 0) == 0.0
    assert sign_test(0, 10_000_000) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": float("nan")},
        {"value": float("inf")},
        {"rows": -1},
        {"rows": 10_000_001},
        {"wins": 10_000_001},
        {"extra": 1},
    ],
)
def test_what_is_no_metric_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Metric.model_validate({"value": 0.5, "rows": 10, **wrong})


def test_a_report_has_its_primary_metric() -> None:
    with pytest.raises(ValidationError, match="in none of the suites"):
        EvaluationReport.model_validate({**report().model_dump(), "primary": "other/accuracy"})


def test_a_report_alone_is_compared_with_nothing() -> None:
    alone = _against().alone()
    assert alone.previous is None
    assert (alone.headline.previous, alone.headline.wins) == (None, None)
    assert alone.headline.value == 0.9
