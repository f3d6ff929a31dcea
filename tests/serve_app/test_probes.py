from dataclasses import dataclass

import pytest

from cluster.adapters import GoldenProbe
from serve_app.engine.probes import MISSING, probe_differences

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
