"""The ridge regression behind the routing map."""

from __future__ import annotations

import numpy as np

from train_jobs.base_model.routing_map import ridge


def test_a_linear_relation_is_found_and_offsets_are_kept() -> None:
    draw = np.random.default_rng(0)
    true = draw.normal(size=(6, 6))
    inputs = draw.normal(size=(4000, 6)).astype(np.float32) + 3
    wanted = (inputs @ true - 2).astype(np.float32)
    weight, bias = ridge(inputs, wanted)
    assert np.allclose(weight, true, atol=1e-3)
    assert np.allclose(inputs @ weight + bias, wanted, atol=1e-2)


def test_directions_without_evidence_stay_small() -> None:
    inputs = np.zeros((50, 3), dtype=np.float32)
    inputs[:, 0] = np.linspace(-1, 1, 50)
    weight, _ = ridge(inputs, inputs * 2)
    assert np.allclose(weight[1:], 0)
    assert 1.9 < weight[0, 0] < 2.0
