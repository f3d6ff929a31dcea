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
    ("found", "bfloat16", "eight_bits"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": False}, False, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_vnni": False}, True, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_vnni": True}, True, True),
        ({"architecture": "aarch64"}, True, False),
    ],
)
def test_what_a_processor_computes_fast(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], bfloat16: bool, eight_bits: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert (processor.bfloat16(), processor.eight_bits()) == (bfloat16, eight_bits)


def test_training_is_in_the_precision_that_is_asked_for(tmp_path: Any) -> None:
    settings = {
        **{"adapter": "care", "tenant": "shop", "version": 1, "run_id": "care-1"},
        **dict.fromkeys(("dataset", "heldout", "out", "storage"), str(tmp_path)),
        "base_model": {"path": str(MODEL)},
    }
    config = TrainConfig.model_validate(settings)
    for half in (True, False):
        assert deepspeed_config(config, bfloat16=half)["bf16"] == {"enabled": half}
