from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.adapters import WEIGHTS
from cluster.records.adapter import GoldenProbe
from serve_app.engine.probes import (
    MISSING,
    GivenTokens,
    given_differences,
    has_head,
    least_certain,
    to_give,
    written_differences,
)

PROBE = GoldenProbe(
    prompt_token_ids=(1, 2, 3),
    target_token_ids=(7, 8, 9),
    logprobs=(-0.1, -0.2, -0.3),
    prompt_logprobs=(-4.0, -5.0),
)
GIVEN = GivenTokens(PROBE.prompt_token_ids, PROBE.prompt_logprobs)


@dataclass
class Logprob:
    logprob: float


@dataclass
class Piece:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]


def _piece(*steps: tuple[int, dict[int, float]]) -> Piece:
    options = [{token: Logprob(value) for token, value in found.items()} for _, found in steps]
    return Piece([written for written, _ in steps], options)


def test_the_same_weights_differ_by_nothing() -> None:
    piece = _piece((7, {7: -0.1}), (8, {8: -0.2}), (9, {9: -0.3}))
    assert written_differences(PROBE, 0, piece) == pytest.approx([0, 0, 0])


def test_after_the_answers_part_nothing_is_compared() -> None:
    piece = _piece((7, {7: -0.1}), (5, {5: -0.1, 8: -0.9}), (9, {9: -0.3}))
    assert written_differences(PROBE, 0, piece) == pytest.approx([0, 0.7])


def test_a_token_the_engine_would_not_write_counts_fully() -> None:
    assert written_differences(PROBE, 0, _piece((5, {5: -0.1}))) == [MISSING]


def test_an_empty_answer_is_no_proof() -> None:
    assert written_differences(PROBE, 0, _piece()) == [MISSING]


def _given(*found: dict[int, float] | None) -> list[dict[int, Logprob] | None]:
    return [
        {token: Logprob(value) for token, value in one.items()} if one is not None else None
        for one in found
    ]


def test_what_is_written_from_a_later_place_is_compared_with_what_belongs_there() -> None:
    piece = _piece((8, {8: -0.2}), (9, {9: -0.7}))
    assert written_differences(PROBE, 1, piece) == pytest.approx([0, 0.4])


@pytest.mark.parametrize(
    ("logprobs", "place"),
    [
        # As an adapter for JSON writes: what every answer begins with is certain.
        ((-0.0, -0.0, -0.1, -1.7, -0.2, -1.1, -0.0), 2),
        ((-3.0, -0.0, -0.0, -0.0, -0.0), 0),
        ((-0.1, -0.2), 0),
        ((-0.1,), 0),
    ],
)
def test_an_answer_is_written_where_its_trainer_was_least_certain(
    logprobs: tuple[float, ...], place: int
) -> None:
    assert least_certain(logprobs, 4) == place


def _asked(tokens: int, known: bool = True) -> GoldenProbe:
    return GoldenProbe(
        prompt_token_ids=tuple(range(tokens)),
        target_token_ids=(7,),
        logprobs=(-0.1,),
        prompt_logprobs=tuple(-1.0 - place for place in range(tokens - 1)) if known else (),
    )


def _lengths(*golden: GoldenProbe) -> list[int]:
    found = to_give(golden)
    for one in found:
        assert one.token_ids == tuple(range(len(one.token_ids)))
        assert one.logprobs == tuple(-1.0 - place for place in range(len(one.token_ids) - 1))
    return [len(one.token_ids) for one in found]


def test_two_prompts_are_given_whole_and_no_more_than_show_enough() -> None:
    assert _lengths(_asked(9), _asked(30, known=False), _asked(9), _asked(9)) == [9, 9]
    assert _lengths(_asked(200), _asked(9), _asked(9)) == [200, 9]
    assert _lengths(_asked(30)) == [30]
    assert _lengths(_asked(30), _asked(1), _asked(5)) == [30, 5], "nothing is known of one token"


def test_of_further_prompts_no_more_is_given_than_is_wanted() -> None:
    assert _lengths(_asked(8), _asked(8), _asked(8), _asked(8)) == [8, 8, 3]
    assert _lengths(*[_asked(5)] * 9) == [5, 5, 5, 5]
    assert _lengths(*[_asked(6)] * 9) == [6, 6, 6, 2]
    assert _lengths(_asked(3), _asked(3), _asked(100), _asked(3)) == [3, 3, 13]


def test_prompts_that_show_too_little_are_not_given() -> None:
    assert to_give([_asked(9), _asked(5)]) == []
    assert to_give([_asked(4)] * 5) == []
    assert to_give([_asked(30, known=False)]) == []
    assert to_give([]) == []


def test_no_more_is_given_than_there_is_room_for() -> None:
    (given,) = to_give([_asked(200)])
    assert given.cut(300) == given
    assert len(given.cut(5).token_ids) == 5
    assert given.cut(5).logprobs == given.logprobs[:4]
    assert given.cut(0).logprobs == ()


def test_every_token_of_a_given_prompt_is_compared() -> None:
    found = _given({2: -4.0}, {3: -5.7, 5: -0.1})
    assert given_differences(GIVEN, found) == pytest.approx([0, 0.7])


def test_of_a_given_prompt_no_more_is_compared_than_was_given() -> None:
    assert given_differences(GIVEN, _given({2: -4.2})) == pytest.approx([0.2])


@pytest.mark.parametrize("odd", [None, {5: -0.1}])
def test_a_given_token_the_engine_says_nothing_of_counts_fully(
    odd: dict[int, float] | None,
) -> None:
    assert given_differences(GIVEN, _given(odd, {3: -5.0})) == pytest.approx([MISSING, 0])


def test_nothing_given_is_no_proof() -> None:
    assert given_differences(GIVEN, []) == [MISSING]


@pytest.mark.parametrize(
    ("module", "head"), [("model.layers.0.mlp.up_proj", False), ("lm_head", True)]
)
def test_which_adapters_change_the_head(tmp_path: Path, module: str, head: bool) -> None:
    save_file({f"base_model.model.{module}.lora_A.weight": torch.ones(1, 2)}, tmp_path / WEIGHTS)
    assert has_head(tmp_path) is head
