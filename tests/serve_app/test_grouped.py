"""LoRA on a CPU: every row gets its own adapter, and no row without one gets any."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping

from serve_app.engine.grouped import GroupedPunica
from serve_app.engine.rows import Plan, StackedA, StackedB, Together, _laid_out, add_layer, plan

SLOTS, RANK, IN = 5, 4, 16
OUTS = (24, 8, 8)
OUT = sum(OUTS)
Weights = tuple[list[torch.Tensor], list[torch.Tensor]]


def weights(dtype: torch.dtype = torch.float32) -> Weights:
    """A and B of each slice, as vLLM makes them."""
    torch.manual_seed(7)
    return (
        [torch.randn(SLOTS, 1, RANK, IN).to(dtype) for _ in OUTS],
        [torch.randn(SLOTS, 1, out, RANK).to(dtype) for out in OUTS],
    )


def row_by_row(
    slots: list[int | None], y: torch.Tensor, x: torch.Tensor, made: Weights
) -> torch.Tensor:
    y = y.clone()
    for row, slot in enumerate(slots):
        if slot is None:
            continue
        found = [
            b[slot, 0].float() @ (a[slot, 0].float() @ x[row].float())
            for a, b in zip(*made, strict=True)
        ]
        y[row] += torch.cat(found).to(y.dtype)
    return y


def planned(found: Plan) -> list[tuple[int, int]]:
    """Each row that has an adapter, with the slot it is multiplied with where it is found."""
    if found.others is not None:
        assert found.together is not None
        slots = found.together.slots
        alike = (~found.others[:, :, 0]).nonzero().tolist()
        return [(row, slots[place]) for row, place in alike]
    by_place = {place: slot for slot, at in found.alone for place in range(at.start, at.stop)}
    if found.together is not None:
        rest = range(len(by_place), len(found.taken))
        slots = found.together.slots
        assert len(rest) % len(slots) == 0
        for place in rest:
            by_place[place] = slots[(place - rest.start) // (len(rest) // len(slots))]
    assert sorted(by_place) == list(range(len(found.taken)))
    pairs = []
    for row, place in enumerate(found.found.tolist()):
        if place < len(found.taken):
            assert found.taken[place] == row
            pairs.append((row, by_place[place]))
        else:
            assert place == len(found.taken), "the row of zeros is the one after the last"
    return pairs


def batches() -> list[Any]:
    rng = random.Random(7)
    drawn = [
        [rng.choice([None, *range(SLOTS)]) for _ in range(rng.randint(1, 60))] for _ in range(40)
    ]
    prompts = [
        [0] * 40 + [1, 2, 1, None],
        [None] * 3 + [4] * 50,
        [3],
        [None],
        [],
        [1, 2] * 30,
        [0, 4, 0, 4],
        [2] * 9,
    ]
    return [*drawn, *prompts]


@pytest.mark.parametrize("slots", batches(), ids=lambda slots: f"{len(slots)} rows")
def test_every_row_is_multiplied_once_with_its_own_slot(slots: list[int | None]) -> None:
    found = plan(slots)
    assert planned(found) == [(row, s) for row, s in enumerate(slots) if s is not None]
    a, b = made = weights()
    x, y = torch.randn(len(slots), IN), torch.randn(len(slots), OUT)
    expected = row_by_row(slots, y, x, made)
    if not found.empty:
        add_layer(y, x, found, StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slots", batches(), ids=lambda slots: f"{len(slots)} rows")
def test_what_was_put_side_by_side_before_changes_no_answer(slots: list[int | None]) -> None:
    a, b = made = weights()
    stacked = StackedA.of(a), StackedB.of(b)
    x, beside = torch.randn(len(slots), IN), None
    for start in range(0, len(slots), 7):
        some = slots[start : start + 7]
        found = plan(some, beside)
        beside = found.together or beside
        assert planned(found) == [(row, s) for row, s in enumerate(some) if s is not None]
        y = torch.zeros(len(some), OUT)
        if not found.empty:
            add_layer(y, x[start : start + 7], found, *stacked)
        expected = row_by_row(some, torch.zeros_like(y), x[start : start + 7], made)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_many_rows_of_one_adapter_are_one_product_without_padding() -> None:
    found = plan([0] * 400 + [1, 2, 3])
    assert found.alone == ((0, slice(0, 400)),)
    assert found.together == Together((1, 2, 3))
    assert len(found.taken) == 403
    assert plan([None, None]).empty
    assert [plan([2] * rows).only for rows in (1, 9, 90)] == [2, 2, 2]
    assert plan([2] * 9 + [None]).only is None


def test_slots_far_apart_are_put_side_by_side_and_stay_so() -> None:
    first = plan([0, 30, 10, 20]).together
    assert first is not None
    assert first.slots == (0, 10, 20, 30)
    more = plan([0, 30, 20, 10, 15], first).together
    assert more is not None
    assert more.slots == (0, 10, 15, 20, 30)
    assert plan([20, None, 30, 0, 10], more).together is more
    assert plan([40, 41, 42, 43], more).together != more
    many = Together(tuple(range(0, 60, 2)), wide=True)
    few = plan([0, 30, 0, 10, 20, 30], many).together
    assert few is not None
    assert few.slots == (0, 10, 20, 30), "too many to multiply them all"


def test_what_is_kept_side_by_side_follows_what_vllm_writes() -> None:
    a, b = made = weights()
    stacked = StackedA.of(a), StackedB.of(b)
    found = Together((0, 2, 4))
    both: list[int | None] = [0, 4, 2, 0]
    layout = _laid_out(4, {0: [0, 3], 4: [1], 2: [2]}, [], found)
    x = torch.randn(4, IN)
    for number in range(3):
        y = torch.zeros(4, OUT)
        add_layer(y, x, layout, *stacked)
        torch.testing.assert_close(y, row_by_row(both, y * 0, x, made), rtol=1e-4, atol=1e-4)
        for views, plain in zip(stacked, made, strict=True):
            for view, one in zip(views, plain, strict=True):
                one[2 * number] = torch.randn(one.shape[1:])
                view[2 * number].copy_(one[2 * number])


def test_half_precision_is_multiplied_in_full() -> None:
    a, b = made = weights(torch.bfloat16)
    slots: list[int | None] = [0, 1, None, 1, 4, 0]
    x, y = torch.randn(6, IN).bfloat16(), torch.zeros(6, OUT).bfloat16()
    expected = row_by_row(slots, y, x, made)
    add_layer(y, x, plan(slots), StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    assert not y[2].any()
    one = torch.zeros(6, OUT).bfloat16()
    add_layer(one, x, plan([1] * 6), StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(one[[1, 3]], y[[1, 3]], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("spoiled", [float("inf"), float("nan")])
@pytest.mark.parametrize("times", [1, 9])
def test_an_adapter_that_overflows_spoils_its_own_rows_only(spoiled: float, times: int) -> None:
    a, b = made = weights()
    for one in a:
        one[3] = spoiled
    slots: list[int | None] = [0, 3, None, 2, 3, 4, 1]
    slots += [0] * times  # as many as make a plan of another kind
    x = torch.randn(len(slots), IN)
    y = torch.zeros(len(slots), OUT)
    add_layer(y, x, plan(slots), StackedA.of(a), StackedB.of(b))
    others = [0, 2, 3, 5, 6]
    expected = row_by_row(slots, torch.zeros_like(y), x, made)
    torch.testing.assert_close(y[others], expected[others], rtol=1e-4, atol=1e-4)
    assert not y[[1, 4]].isfinite().any()


def test_what_vllm_writes_to_a_slot_is_what_is_multiplied() -> None:
    """It sets a slot to zero, then copies weights of a smaller rank into a corner of it."""
    a, b = weights()
    stacked_a, stacked_b = StackedA.of(a), StackedB.of(b)
    assert [one.shape for one in stacked_a] == [one.shape for one in a]
    assert [one.shape for one in stacked_b] == [one.shape for one in b]
    assert all(map(torch.equal, (*stacked_a, *stacked_b), (*a, *b)))
    small = torch.randn(2, IN), torch.randn(8, 2)
    for stacked, given in ((stacked_a, small[0]), (stacked_b, small[1])):
        stacked[1][3] = 0
        stacked[1][3, 0, : given.shape[0], : given.shape[1]].copy_(given)
    x = torch.randn(2, IN)
    for other in (3, 0):  # by itself, and beside another
        y = torch.zeros(2, OUT)
        add_layer(y, x, plan([3, other]), stacked_a, stacked_b)
        torch.testing.assert_close(y[0, 24:32], small[1] @ (small[0] @ x[0]), rtol=1e-4, atol=1e-4)


def asked(index: tuple[int, ...], prompts: tuple[int, ...]) -> GroupedPunica:
    """Adapters 11 to 15 are in slots 0 to 4."""
    punica = GroupedPunica(64, max_batches=8, device="cpu")
    mapping = LoRAMapping(index, prompts, is_prefill=True)
    punica.update_metadata(mapping, [11, 12, 13, 14, 15], SLOTS, 100)
    return punica


def test_rows_without_an_adapter_stay_as_they_are_when_all_slots_are_taken() -> None:
    """vLLM's own class takes the last slot's weights for index -1."""
    a, b = made = weights()
    # One token of the base model beside one of adapter 12.
    punica = asked((0, 12, 12), (0, 12))
    x, y = torch.randn(3, IN), torch.zeros(3, OUT)
    punica.add_lora_linear(y, x, StackedA.of(a), StackedB.of(b), 1.0, OUTS)
    expected = row_by_row([None, 1, 1], torch.zeros(3, OUT), x, made)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert not y[0].any()
    assert y[1].any()


def test_the_head_takes_each_prompts_own_adapter() -> None:
    a, b = (one[0] for one in weights())
    a[4] = 0.0  # this one has no weights for the head
    punica = asked((0, 12, 12, 15), (0, 12, 15))
    x, logits = torch.randn(3, IN), torch.zeros(3, 21)  # vLLM pads an adapter's width
    for spread in (1.0, 3.0):
        logits.zero_()
        punica.add_lora_logits(logits, x, a, b, 1.0)
        expected = b[1, 0, :21] @ (a[1, 0] @ x[1])
        torch.testing.assert_close(logits[1], expected, rtol=1e-4, atol=1e-4)
        assert not logits[[0, 2]].any()
        a[1] *= spread + 2.0  # written to again, as a swap does


def test_the_embedding_of_a_token_without_an_adapter_stays_as_it_is() -> None:
    b = weights()[1][0]
    punica = asked((0, 12, 15), (0,))
    low, y = torch.randn(3, RANK), torch.ones(3, 24)
    punica.add_lora_embedding(y, low, b)
    expected = torch.stack([torch.zeros(24), b[1, 0] @ low[1], b[4, 0] @ low[2]]) + 1
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_head_asked_for_other_rows_than_planned_is_our_fault() -> None:
    a, b = (one[0] for one in weights())
    with pytest.raises(AssertionError, match="other rows"):
        asked((12, 12), (12,)).add_lora_logits(torch.zeros(2, 24), torch.randn(2, IN), a, b, 1.0)


def test_without_adapters_nothing_is_computed() -> None:
    a, b = weights()
    for one in (*a, *b):
        one.fill_(float("nan"))
    y = torch.ones(2, OUT)
    punica = asked((0, 0), (0,))
    punica.add_lora_linear(y, torch.randn(2, IN), StackedA.of(a), StackedB.of(b), 1.0, OUTS)
    assert (y == 1).all()
