"""LoRA on a CPU: every row gets its own adapter, and no row without one gets any."""

from __future__ import annotations

import random

import pytest
import torch
from vllm.lora.layers import LoRAMapping

from serve_app.engine.grouped import GroupedPunica, Plan, Product, plan

SLOTS, RANK, IN, OUT = 5, 4, 16, 24


def weights(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    return torch.randn(SLOTS, 1, RANK, IN).to(dtype), torch.randn(SLOTS, 1, OUT, RANK).to(dtype)


def row_by_row(
    slots: list[int | None], y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    y = y.clone()
    for row, slot in enumerate(slots):
        if slot is not None:
            y[row] += (b[slot, 0].float() @ (a[slot, 0].float() @ x[row].float())).to(y.dtype)
    return y


def planned(found: Plan) -> list[tuple[int, int]]:
    """Each row that is computed, with its slot, once for each time that it is."""
    every = torch.arange(100)
    pairs = [(slot, row) for slot, rows in found.alone for row in every[rows].tolist()]
    if (rest := found.together) is not None:
        longest = len(rest.taken) // len(rest.slots)
        at = zip(every[rest.rows].tolist(), rest.found.tolist(), strict=True)
        for row, place in at:
            assert rest.taken[place] == row
            pairs.append((int(rest.slots[place // longest]), row))
    return sorted(pairs)


def batches() -> list[list[int | None]]:
    rng = random.Random(7)
    drawn = [
        [rng.choice([None, *range(SLOTS)]) for _ in range(rng.randint(1, 60))] for _ in range(40)
    ]
    prompts = [[0] * 40 + [1, 2, 1, None], [None] * 3 + [4] * 50, [3], [None], [], [1, 2] * 30]
    return [*drawn, *prompts]


@pytest.mark.parametrize("slots", batches(), ids=lambda slots: f"{len(slots)} rows")
def test_every_row_is_multiplied_once_with_its_own_slot(slots: list[int | None]) -> None:
    found = plan(slots)
    assert planned(found) == sorted((s, row) for row, s in enumerate(slots) if s is not None)
    a, b = weights()
    x, y = torch.randn(len(slots), IN), torch.randn(len(slots), OUT)
    expected = row_by_row(slots, y, x, a, b)
    Product(found, x).add(y, a, b, 1.0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_many_rows_of_one_adapter_are_one_product_without_padding() -> None:
    found = plan([0] * 100 + [1, 2, 3])
    assert [(slot, rows) for slot, rows in found.alone] == [(0, slice(0, 100))]
    assert found.together is not None
    assert found.together.slots.tolist() == [1, 2, 3]
    assert plan([None, None]) == Plan()


def test_half_precision_and_a_head_wider_than_the_model() -> None:
    a, b = weights(torch.bfloat16)
    x, y = torch.randn(6, IN).bfloat16(), torch.zeros(6, OUT - 3).bfloat16()
    slots: list[int | None] = [0, 1, None, 1, 4, 0]
    expected = row_by_row(slots, y, x, a, b[:, :, : OUT - 3])
    Product(plan(slots), x).add(y, a, b, 1.0)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    assert not y[2].any()


def test_rows_without_an_adapter_stay_as_they_are_when_all_slots_are_taken() -> None:
    """vLLM's own class takes the last slot's weights for index -1."""
    a, b = weights()
    punica = GroupedPunica(64, max_batches=8, device="cpu")
    # Adapters 11 to 15 in slots 0 to 4; one token of the base model beside one of adapter 12.
    mapping = LoRAMapping((0, 12, 12), (0, 12), is_prefill=True)
    punica.update_metadata(mapping, [11, 12, 13, 14, 15], SLOTS, 100)
    x, y = torch.randn(3, IN), torch.zeros(3, 2 * OUT)
    punica.add_lora_linear(y, x, (a, a), (b, b), 1.0, (OUT, OUT))
    half = row_by_row([None, 1, 1], torch.zeros(3, OUT), x, a, b)
    torch.testing.assert_close(y, torch.cat([half, half], 1), rtol=1e-4, atol=1e-4)
    assert not y[0].any()
    assert y[1].any()
    logits = torch.zeros(2, OUT)
    punica.add_lora_logits(logits, x[:2], a, b, 1.0)
    torch.testing.assert_close(logits, half[:2], rtol=1e-4, atol=1e-4)


def test_the_embedding_of_a_token_without_an_adapter_stays_as_it_is() -> None:
    _, b = weights()
    punica = GroupedPunica(64, max_batches=8, device="cpu")
    punica.update_metadata(
        LoRAMapping((0, 12, 15), (0,), is_prefill=True), [11, 12, 13, 14, 15], 5, 9
    )
    low, y = torch.randn(3, RANK), torch.ones(3, OUT)
    punica.add_lora_embedding(y, low, b)
    expected = torch.stack([torch.zeros(OUT), b[1, 0] @ low[1], b[4, 0] @ low[2]]) + 1
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_head_asked_for_other_rows_than_planned_is_our_fault() -> None:
    a, b = weights()
    punica = GroupedPunica(64, max_batches=8, device="cpu")
    punica.update_metadata(LoRAMapping((12, 12), (12,), is_prefill=True), [11, 12], 2, 9)
    with pytest.raises(AssertionError, match="other rows"):
        punica.add_lora_logits(torch.zeros(2, OUT), torch.randn(2, IN), a, b, 1.0)


def test_without_adapters_nothing_is_computed() -> None:
    punica = GroupedPunica(64, max_batches=8, device="cpu")
    punica.update_metadata(LoRAMapping((0, 0), (0,), is_prefill=True), [11, 12], 2, 9)
    nothing: tuple[torch.Tensor, ...] = ()
    y = torch.ones(2, OUT)
    punica.add_lora_linear(y, torch.randn(2, IN), nothing, nothing, 1.0, (OUT,))
    assert (y == 1).all()
