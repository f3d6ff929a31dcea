from math import comb

import pytest

from cluster.adapters import Evaluation
from cluster.rollout.gate import GateConfig, judge, sign_test


def _against(evaluation: Evaluation, **changes: object) -> Evaluation:
    return evaluation.model_copy(
        update={
            "previous": "inventory@1",
            "previous_accuracy": 0.86,
            "wins": 30,
            "losses": 10,
            **changes,
        }
    )


def test_a_first_version_needs_accuracy_only(evaluation: Evaluation) -> None:
    assert judge(evaluation, GateConfig()).passed
    refused = judge(evaluation, GateConfig(min_accuracy=0.95))
    assert not refused.passed
    assert "0.900 is below" in refused.reason


def test_a_gain_that_holds_passes(evaluation: Evaluation) -> None:
    assert judge(_against(evaluation), GateConfig(min_gain=0.02)).passed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accuracy": 0.2}, "below the least"),
        ({"accuracy": 0.87}, "gain"),
        ({"wins": 22, "losses": 18}, "luck"),
        ({"heldout_rows": 50}, "only 50"),
    ],
)
def test_what_does_not_hold_is_refused(
    evaluation: Evaluation, changes: dict[str, object], reason: str
) -> None:
    verdict = judge(_against(evaluation, **changes), GateConfig(min_gain=0.02))
    assert not verdict.passed
    assert reason in verdict.reason


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
        {"accuracy": float("nan")},
        {"accuracy": 1.5},
        {"previous_accuracy": float("-inf")},
        {"heldout_rows": -1},
        {"wins": 10**12},
    ],
)
def test_what_is_no_share_or_count_is_no_evaluation(
    evaluation: Evaluation, wrong: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Evaluation.model_validate({**evaluation.model_dump(), **wrong})
