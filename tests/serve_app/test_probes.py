from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.adapters import WEIGHTS, GoldenProbe
from serve_app.engine.probes import MISSING, forced_differences, has_head, probe_differences

PROBE = GoldenProbe(prompt_token_ids=(1,), target_token_ids=(7, 8, 9), logprobs=(-0.1, -0.2, -0.3))


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
    assert probe_differences(PROBE, piece) == pytest.approx([0, 0, 0])


def test_after_the_answers_part_nothing_is_compared() -> None:
    piece = _piece((7, {7: -0.1}), (5, {5: -0.1, 8: -0.9}), (9, {9: -0.3}))
    assert probe_differences(PROBE, piece) == pytest.approx([0, 0.7])


def test_a_token_the_engine_would_not_write_counts_fully() -> None:
    assert probe_differences(PROBE, _piece((5, {5: -0.1}))) == [MISSING]


def test_an_empty_answer_is_no_proof() -> None:
    assert probe_differences(PROBE, _piece()) == [MISSING]


def _given(*found: dict[int, float] | None) -> list[dict[int, Logprob] | None]:
    return [one and {token: Logprob(value) for token, value in one.items()} for one in found]


def test_every_token_of_a_given_answer_is_compared() -> None:
    found = _given({7: -0.1}, {8: -0.9, 5: -0.1}, {9: -0.4})
    assert forced_differences(PROBE, found) == pytest.approx([0, 0.7, 0.1])


def test_of_a_given_answer_no_more_is_compared_than_was_given() -> None:
    assert forced_differences(PROBE, _given({7: -0.3}, {8: -0.2})) == pytest.approx([0.2, 0])


@pytest.mark.parametrize("odd", [None, {5: -0.1}])
def test_a_given_token_the_engine_says_nothing_of_counts_fully(
    odd: dict[int, float] | None,
) -> None:
    found = forced_differences(PROBE, _given({7: -0.1}, odd, {9: -0.3}))
    assert found == pytest.approx([0, MISSING, 0])


def test_no_answer_given_is_no_proof() -> None:
    assert forced_differences(PROBE, []) == [MISSING]


@pytest.mark.parametrize(
    ("module", "head"), [("model.layers.0.mlp.up_proj", False), ("lm_head", True)]
)
def test_which_adapters_change_the_head(tmp_path: Path, module: str, head: bool) -> None:
    save_file({f"base_model.model.{module}.lora_A.weight": torch.ones(1, 2)}, tmp_path / WEIGHTS)
    assert has_head(tmp_path) is head
