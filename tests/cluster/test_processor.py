"""What a processor is taken for, and what training does on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cluster import processor
from tests.conftest import MODEL
from train_jobs.config import TrainConfig
from train_jobs.loop import deepspeed_config


@pytest.mark.parametrize(
    ("found", "bfloat16", "eight_bits", "saturate"),
    [
        ({"architecture": "x86_64", "avx2": False}, False, False, True),
        ({"architecture": "x86_64", "avx2": True, "avx512_f": False}, False, True, True),
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True}, True, True, True),
        (
            {"avx2": True, "architecture": "x86_64", "avx512_f": True, "avx512_vnni": True},
            True,
            True,
            False,
        ),
        ({"architecture": "aarch64"}, True, False, True),
    ],
)
def test_what_a_processor_computes_fast(
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, Any],
    bfloat16: bool,
    eight_bits: bool,
    saturate: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert processor.bfloat16() is bfloat16
    assert processor.eight_bits() is eight_bits
    assert processor.pairs_saturate() is saturate


@pytest.mark.parametrize(
    ("wanted", "gpu", "fast", "found"),
    [
        ("auto", True, False, "bfloat16"),
        ("auto", False, True, "bfloat16"),
        ("auto", False, False, "float32"),
        ("bfloat16", False, False, "bfloat16"),
        ("float32", True, True, "float32"),
    ],
)
def test_what_a_model_is_computed_in(
    monkeypatch: pytest.MonkeyPatch, wanted: str, gpu: bool, fast: bool, found: str
) -> None:
    capabilities = {"architecture": "x86_64", "avx512_f": fast}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert processor.precision(wanted, gpu=gpu) == found


def test_training_is_in_the_precision_that_is_asked_for(tmp_path: Any) -> None:
    settings = {
        **{"adapter": "care", "tenant": "shop", "version": 1, "run_id": "care-1"},
        **dict.fromkeys(("dataset", "heldout", "out", "storage"), str(tmp_path)),
        "base_model": {"path": str(MODEL)},
    }
    config = TrainConfig.model_validate(settings)
    for half in (True, False):
        assert deepspeed_config(config, bfloat16=half)["bf16"] == {"enabled": half}
