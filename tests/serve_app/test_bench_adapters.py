"""How the swap benchmark judges what it measured, and what a crowd is asked."""

import itertools
from collections import Counter
from typing import Any

import pytest

from serve_app.bench import crowds
from serve_app.bench.adapters import Answer, Kill, Plan, Spans, Swap, judged, judged_kills
from serve_app.bench.crowd import draws
from serve_app.bench.intervals import p99_ratio

OFFLINE = {
    "hot@1": ["one", "uno"],
    "hot@2": ["two", "uno"],
    "hot@3": ["three", "tre"],
    "steady-a@1": ["a", "number 2377777777"],
}
REPORT = {
    "removed": True,
    "replicas": 1,
    "prepare_s": 0.1,
    "flip_s": 0.001,
    "drain_s": 0.2,
    "proof_difference": 0.001,
}


def _answer(version: str, text: str, prompt: int, sent: float, **more: object) -> Answer:
    asked = version.partition("@")[0]
    found = Answer(asked, sent, sent + 0.05, sent + 0.1, version, text, prompt)
    for name, value in more.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("swaps", [10, 19, 20, 50, 200])
def test_every_block_has_a_swap(swaps: int) -> None:
    plan = Plan.of(swaps, every_s=1.0, clients=4)
    assert plan.back_to_back >= 1
    assert 1 <= plan.blocks <= swaps - plan.back_to_back
    assert Plan.of(200, every_s=1.0, clients=4) == Plan()


def test_answers_are_held_against_the_version_they_name() -> None:
    answers = [
        _answer("hot@1", "one", 0, 1.0),
        _answer("hot@2", "one", 0, 12.3),
        _answer("hot@2", "two", 0, 12.4),
        _answer("hot@2", "uno", 1, 12.5),
        _answer("hot@2", "zwei", 0, 12.6),
        # Weights of long before, or of what is not yet to serve.
        _answer("hot@1", "three", 0, 12.6),
        _answer("steady-a@1", "a", 0, 1.0),
        _answer("steady-a@1", "number 2377777777", 1, 12.0, done=12.3),
        _answer("", "", 0, 12.0, error="503"),
        # Before anything is measured, and across the end of a rest: judged, not timed.
        _answer("steady-a@1", "a", 0, -2.0, done=0.0),
        _answer("steady-a@1", "a", 0, 9.0, done=12.0),
        _answer("steady-a@1", "a", 0, 13.9, done=14.4),
    ]
    spans = Spans(swap=[(11.5, 13.0)], rest=[(0.5, 10.0)], back_to_back=[(13.5, 15.0)])
    found = judged(answers, [Swap("hot@2", 12.0, 12.4, REPORT)], spans, OFFLINE)
    assert found["replicas"] == 1
    assert (found["right"], found["wrong"], found["unlike"], found["failed"]) == (8, 2, 1, 1)
    assert found["errors"] == ["503"]
    assert found["promote_to_first_token_ms"] == {"n": 1, "p50": 350.0, "p99": 350.0}
    assert found["others_p99_ratio"] == 3.0
    assert found["others_p99_ratio_95"] == [3.0, 3.0]
    assert found["others_p99_ratio_back_to_back"] == 5.0
    assert found["others_rows_ms"] == {
        "swap": [[300.0]],
        "rest": [[100.0]],
        "back_to_back": [[500.0]],
    }


def test_blocks_drawn_anew_tell_how_far_a_ratio_is_off() -> None:
    steady = [([1.0, 2.0, 3.3], [1.0, 2.0, 3.0])] * 8
    assert p99_ratio(steady) == pytest.approx((1.1, 1.1))
    # One block in eight is three times as slow: it is in two of three draws.
    low, high = p99_ratio([*steady[1:], ([9.0], [3.0])])
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(3.0)
    # A draw of nothing but an empty block tells nothing.
    assert p99_ratio([([2.0], []), ([4.0], [2.0])]) == (2.0, 2.0)


def test_a_kill_is_over_with_the_last_whole_answer() -> None:
    kills = [Kill(10.0, 10.2, 3, True, 12.0), Kill(20.0, 20.1, 0, False, 22.0)]
    answers = [
        _answer("hot@1", "one", 0, 9.0, done=9.5),
        _answer("hot@1", "one", 0, 9.9, done=10.1),
        _answer("", "", 0, 9.9, done=10.15, error="403"),
        _answer("hot@1", "one", 0, 11.0, done=11.5),  # it should not have been
        _answer("hot@1", "one", 0, 12.5, done=13.0),
    ]
    found = judged_kills(answers, kills)
    assert (found["kills"], found["confirmed"], found["cut_off"]) == (2, 1, 3)
    assert found["kill_ms"] == {"n": 2, "p50": 200.0, "p99": 200.0}
    assert found["last_answer_ms"] == {"n": 2, "p50": 1500.0, "p99": 1500.0}
    assert found["answered_after"] == 1


def test_crowds_are_compared_round_by_round_in_one_engine_and_by_medians_between_two() -> None:
    names = {
        "base alone": 400,
        "1 mixed": 100,
        "8 mixed": 90,
        "8 apart": 120,
        "8 by PEFT": 10,
        "base, plain": 800,
        "merged, plain": 700,
        "8 by Zipf": 95,
        "1000 by Zipf": 80,
        "8 by Zipf, 256 held": 100,
        "1000 by Zipf, 256 held": 70,
    }
    rows: list[dict[str, Any]] = [
        {"name": name, "tokens_per_s": value * scale}
        for name, value in names.items()
        for scale in (0.5, 1.0, 3.0)
    ]
    expected = {
        "8 adapters mixed to the same requests apart": 0.75,
        "8 adapters mixed to 1": 0.9,
        "8 adapters mixed to PEFT's set_adapter": 9.0,
        "1 adapter to the base model, in one engine": 0.25,
        "base model without adapters' engine to with": 2.0,
        "1 adapter merged to beside": 7.0,
        "1000 registered to 8, by Zipf": 0.842,
        "1000 registered to 8, by Zipf, 256 held": 0.7,
    }
    assert crowds.ratios(rows, crowds.Plan()) == expected
    # The machine slows down in the second round: within one engine no ratio changes.
    slower = [{**row, "tokens_per_s": row["tokens_per_s"] / 4} for row in rows[1::3]]
    rows[1::3] = slower
    assert crowds.ratios(rows, crowds.Plan())["8 adapters mixed to the same requests apart"] == 0.75


def test_mixed_and_apart_ask_the_same_requests_and_every_adapter_every_prompt() -> None:
    adapters = [f"crowd@{number}" for number in range(1, 9)]
    mixed, apart = (list(draws(adapters, 4, order)) for order in ("mixed", "apart"))
    assert sorted(mixed) == sorted(apart)
    assert Counter(mixed) == dict.fromkeys(itertools.product(adapters, range(4)), 16)
    assert [one for one, _ in mixed[:8]] == adapters
    assert [one for one, _ in apart] == [one for one in adapters for _ in range(64)]


def test_zipf_asks_the_first_most_and_every_prompt() -> None:
    drawn = list(itertools.islice(draws(range(50), 4, "zipf"), 4000))
    asked = Counter(one for one, _ in drawn)
    assert asked.most_common(1)[0][0] == 0
    assert asked[0] > 4 * asked[9] > 0
    assert {prompt for _, prompt in drawn} == {0, 1, 2, 3}
