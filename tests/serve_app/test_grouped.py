"""LoRA on a CPU: every row gets its own adapter, and no row without one gets any."""

from __future__ import annotations

import itertools
import random
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.utils.cache import LRUCache

from serve_app.engine import kernel, rows
from serve_app.engine.grouped import (
    GroupedPunica,
    _arrange_once,
    _clear_what_is_used,
    _find_at_once,
    _write_in_place,
)
from serve_app.engine.rows import Plan, StackedA, StackedB, Weights, add_layer, plan

SLOTS, RANK, IN = 5, 4, 16
OUTS = (24, 8, 8)
OUT = sum(OUTS)
#: Of rows, or of ranks: enough for products of their own.
MANY = rows._PRODUCTS
Made = tuple[list[torch.Tensor], list[torch.Tensor]]


def weights(dtype: torch.dtype = torch.float32) -> Made:
    """A and B of each slice, as vLLM makes them."""
    torch.manual_seed(7)
    return (
        [torch.randn(SLOTS, 1, RANK, IN).to(dtype) for _ in OUTS],
        [torch.randn(SLOTS, 1, out, RANK).to(dtype) for out in OUTS],
    )


def row_by_row(
    slots: list[int | None], y: torch.Tensor, x: torch.Tensor, made: Made
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
    """Each row that has an adapter, with the slot it is multiplied with."""
    pairs = [
        (row, slot)
        for slot, rows in found.own
        for row in (range(found.rows) if rows is None else rows.tolist())
    ]
    blocks = found.blocks.tolist()
    assert blocks[-1] == len(found.others) == len(found.slots)
    for start, end in itertools.pairwise(blocks):
        assert 0 < end - start <= kernel.BLOCK
        assert len(set(found.slots[start:end].tolist())) == 1
    pairs += zip(found.others.tolist(), found.slots.tolist(), strict=True)
    return sorted(pairs)


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
@pytest.mark.parametrize("wide", [RANK, MANY], ids=["few ranks", "many ranks"])
def test_every_row_is_multiplied_once_with_its_own_slot(slots: list[int | None], wide: int) -> None:
    found = plan(slots, [wide] * SLOTS)
    assert planned(found) == [(row, s) for row, s in enumerate(slots) if s is not None]
    a, b = made = weights()
    x, y = torch.randn(len(slots), IN), torch.randn(len(slots), OUT)
    expected = row_by_row(slots, y, x, made)
    if not found.empty:
        add_layer(y, x, found, StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_every_rank_is_multiplied_whole(rank: int, rows: int) -> None:
    torch.manual_seed(rank)
    a = [torch.randn(2, 1, rank, 19) for _ in range(2)]
    b = [torch.randn(2, 1, out, rank) for out in (5, 33)]
    x, y = torch.randn(rows, 19), torch.randn(rows, 38)
    expected = row_by_row([1] * rows, y, x, (a, b))
    add_layer(y, x, plan([1] * rows, [rank] * 2), StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_many_rows_of_one_adapter_have_products_of_their_own() -> None:
    ranks = [8] * 4
    (slot, mine), *others = plan([0] * MANY + [1, 2, 3], ranks).own
    assert (slot, mine.tolist() if mine is not None else None, others) == (0, [*range(MANY)], [])
    assert plan([None, None], ranks).empty
    assert plan([2] * MANY, ranks).own == ((2, None),)
    assert plan([2] * 9, ranks).own == ()
    assert plan([2] * 9, [MANY] * 4).own == ((2, None),), "of a higher rank from fewer rows on"


def test_only_the_ranks_in_use_are_multiplied() -> None:
    a, b = weights()
    for one in (*a, *b):  # what is beyond them is nothing; here, to see that it is left alone
        one[3, 0] = float("nan")
    for one in a:
        one[3, 0, :2] = 1.0
    for one in b:
        one[3, 0, :, :2] = 1.0
    stacked = StackedA.of(a), StackedB.of(b)
    stacked[0].ranks[3] = 2
    for rank in (2, MANY):  # by the kernel, and by products of its own
        y = torch.zeros(2, OUT)
        add_layer(y, torch.ones(2, IN), plan([3, 3], [0, 0, 0, rank, 0]), *stacked)
        assert (y == 2 * IN).all()


GivenTokens = list[torch.Tensor | None]


@pytest.mark.parametrize("rank", [1, 2, RANK])
@pytest.mark.parametrize("missing", [(), (1,), (0, 2)])
def test_a_layer_reads_what_vllm_gives_it_and_nothing_that_was_there(
    rank: int, missing: tuple[int, ...]
) -> None:
    a, b = weights()
    for one in (*a, *b):
        one[3] = float("nan")  # of an adapter that was here before
    layer = Layer(a, b)
    highest = np.zeros(SLOTS, np.int64)
    _write_in_place(layer, highest)
    down: GivenTokens = [None if n in missing else torch.randn(rank, IN) for n in range(3)]
    up: GivenTokens = [None if n in missing else torch.randn(o, rank) for n, o in enumerate(OUTS)]
    if rank > 1 and not missing:  # and one of a lower rank
        down[1], up[1] = torch.randn(1, IN), torch.randn(8, 1)
    layer.set_lora(3, down, up)
    assert highest[3] == rank
    assert layer.cleared == [], "nothing is cleared that is not read"
    x = torch.randn(2, IN)
    parts = [
        torch.zeros(2, out) if lower is None or upper is None else x @ lower.T @ upper.T
        for lower, upper, out in zip(down, up, OUTS, strict=True)
    ]
    for own in (1, MANY):  # by the kernel, and by products of its own
        y = torch.zeros(2, OUT)
        add_layer(y, x, plan([3, 3], [own] * SLOTS), layer.lora_a_stacked, layer.lora_b_stacked)
        torch.testing.assert_close(y, torch.cat(parts, 1), rtol=1e-4, atol=1e-4)


def test_a_layer_for_which_an_adapter_has_nothing_adds_nothing() -> None:
    a, b = weights()
    layer = Layer(a, b)
    _write_in_place(layer, np.zeros(SLOTS, np.int64))
    layer.reset_lora(2)
    for own in (1, MANY):
        y = torch.zeros(2, OUT)
        found = plan([2, 2], [own] * SLOTS)
        add_layer(y, torch.randn(2, IN), found, layer.lora_a_stacked, layer.lora_b_stacked)
        assert not y.any()


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ((RANK + 1, IN), (8, RANK + 1)),
        ((2, IN - 1), (8, 2)),
        ((2, IN), (7, 2)),
        ((2, IN), (8, 1)),
        ((2, IN), None),
    ],
)
def test_what_is_of_another_shape_is_left_to_vllm(
    down: tuple[int, int], up: tuple[int, int] | None
) -> None:
    layer = Layer(*weights())
    _write_in_place(layer, np.zeros(SLOTS, np.int64))
    before = layer.lora_a_stacked.whole.clone()
    layer.reset_lora(1)
    upper = None if up is None else torch.zeros(up)
    layer.set_lora(1, [None, torch.zeros(down), None], [None, upper, None])
    assert layer.cleared == [1], "by vLLM's own way"
    assert layer.lora_a_stacked.ranks[1] == RANK, "all of it is read"
    assert torch.equal(layer.lora_a_stacked.whole, before)
    layer.set_lora(1, torch.zeros(down), torch.zeros(8, 2))
    assert layer.cleared == [1, 1], "as many slices as the layer has, or none"


class Layer:
    """What vLLM's layers do with a slot, as far as it is seen from here."""

    def __init__(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
        self.lora_a_stacked, self.lora_b_stacked = StackedA.of(a), StackedB.of(b)
        self.cleared = list[int]()

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        self.reset_lora(index)

    def reset_lora(self, index: int) -> None:
        self.cleared.append(index)


class BaseLayer(Layer, BaseLinearLayerWithLoRA):  # type: ignore[misc]
    """One of vLLM's, to whoever asks what it is."""

    def __init__(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
        torch.nn.Module.__init__(self)
        Layer.__init__(self, a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_arranged_when_they_are_read_and_as_when_they_take_a_slot(
    dtype: torch.dtype,
) -> None:
    arranged, given = layers = (BaseLayer(*weights()), BaseLayer(*weights()))
    for layer in layers:
        _write_in_place(layer, np.zeros(SLOTS, np.int64))
    first = 0.5
    read = {
        "qkv": Read(
            [torch.randn(2, IN).to(dtype), None, torch.randn(2, IN).to(dtype)],
            [torch.randn(24, 2).to(dtype), None, torch.randn(8, 2).to(dtype)],
        ),
        "head": Read(torch.randn(2, IN), torch.randn(40, 2)),
        "of another shape": Read([torch.randn(2, 3)] * 3, [torch.randn(2, 3)] * 3),
    }
    read["qkv"].lora_b[0][0, 0] = first
    before = {name: (one.lora_a, one.lora_b) for name, one in read.items()}
    held = Held({"qkv": arranged, "head": object(), "of another shape": given, "unasked": given})
    _arrange_once(held)
    held._add_adapter(read)
    assert held.registered == read
    assert isinstance(read["qkv"].lora_a, Weights) is (dtype is torch.float32)
    assert (read["head"].lora_a, read["head"].lora_b) == before["head"]
    assert read["of another shape"].lora_a is before["of another shape"][0]
    arranged.set_lora(3, read["qkv"].lora_a, read["qkv"].lora_b)
    given.set_lora(3, *before["qkv"])
    assert arranged.lora_a_stacked.ranks[3] == given.lora_a_stacked.ranks[3] == 2
    assert torch.equal(arranged.lora_a_stacked.whole, given.lora_a_stacked.whole)
    assert torch.equal(arranged.lora_b_stacked.whole, given.lora_b_stacked.whole)
    assert arranged.lora_b_stacked.whole[3, 0, 0] == 3.0 * first, "scaled before it is arranged"


class Read:
    """What vLLM read of an adapter for one layer."""

    def __init__(self, lora_a: Any, lora_b: Any) -> None:
        self.lora_a, self.lora_b = lora_a, lora_b


class Held:
    """What vLLM's manager does with an adapter that was read, as far as it is seen from here."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self.modules, self.registered = modules, None

    def _add_adapter(self, lora: Any) -> None:
        for one in lora["qkv"].lora_b:
            if one is not None:
                one *= 3.0
        self.registered = lora

    def _get_lora_layer_weights(self, lora: Any, name: str) -> Any:
        return lora.get(name)


def test_an_adapter_that_is_held_is_found_without_a_list_of_all() -> None:
    manager = Manager()
    _find_at_once(manager)
    for request in (Asked(1), Asked(2), Asked(1, load_inplace=True), Asked(1), Asked(2)):
        assert manager.add_adapter(request)
    held = manager._adapter_manager
    assert manager.loaded == [1, 2, 1], "those that are held are not loaded again"
    assert list(held._registered_adapters.order) == [1, 2], "and were used last"
    assert held.activated == [1, 2]


class Asked:
    def __init__(self, lora_int_id: int, *, load_inplace: bool = False) -> None:
        self.lora_int_id, self.load_inplace = lora_int_id, load_inplace


class Manager:
    """What vLLM's managers do with what is asked for, as far as loading goes."""

    def __init__(self) -> None:
        self.loaded = list[int]()
        self.activated = list[int]()
        self._registered_adapters: LRUCache[int, str] = LRUCache(4)
        self._adapter_manager = self

    def add_adapter(self, request: Asked) -> bool:
        self.loaded.append(request.lora_int_id)
        self._registered_adapters[request.lora_int_id] = "weights"
        return True

    def activate_adapter(self, int_id: int) -> None:
        self.activated.append(int_id)


def test_what_cannot_be_multiplied_is_refused_before_it_is() -> None:
    a, b = weights()
    stacked = StackedA.of(a), StackedB.of(b)
    found = plan([0, 1], [RANK] * SLOTS)
    for y, x in ((OUT, IN + 1), (OUT + 1, IN)):
        with pytest.raises(AssertionError, match="another width"):
            add_layer(torch.zeros(2, y), torch.zeros(2, x), found, *stacked)
    with pytest.raises(AssertionError, match="other rows"):
        add_layer(torch.zeros(3, OUT), torch.zeros(3, IN), found, *stacked)


def test_rows_of_a_larger_tensor_are_added_to_where_they_are() -> None:
    a, b = made = weights()
    slots: list[int | None] = [0, 1, None]
    x, whole = torch.randn(3, IN), torch.zeros(3, 2 * OUT)
    expected = row_by_row(slots, torch.zeros(3, OUT), x, made)
    found = plan(slots, [RANK] * SLOTS)
    add_layer(whole[:, :OUT], x, found, StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(whole[:, :OUT], expected, rtol=1e-4, atol=1e-4)
    assert not whole[:, OUT:].any()


def test_half_precision_is_multiplied_in_full() -> None:
    a, b = made = weights(torch.bfloat16)
    slots: list[int | None] = [0, 1, None, 1, 4, 0]
    x, y = torch.randn(6, IN).bfloat16(), torch.zeros(6, OUT).bfloat16()
    expected = row_by_row(slots, y, x, made)
    add_layer(y, x, plan(slots, [RANK] * SLOTS), StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    assert not y[2].any()
    one = torch.zeros(6, OUT).bfloat16()
    add_layer(one, x, plan([1] * 6, [MANY] * SLOTS), StackedA.of(a), StackedB.of(b))
    torch.testing.assert_close(one[[1, 3]], y[[1, 3]], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("spoiled", [float("inf"), float("nan")])
@pytest.mark.parametrize("times", [1, MANY])
def test_an_adapter_that_overflows_spoils_its_own_rows_only(spoiled: float, times: int) -> None:
    a, b = made = weights()
    for one in a:
        one[3] = spoiled
    slots: list[int | None] = [0, 3, None, 2, 3, 4, 1]
    slots += [0] * times  # as many as make a plan of another kind
    x = torch.randn(len(slots), IN)
    y = torch.zeros(len(slots), OUT)
    add_layer(y, x, plan(slots, [RANK] * SLOTS), StackedA.of(a), StackedB.of(b))
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
        add_layer(y, x, plan([3, other], [RANK] * SLOTS), stacked_a, stacked_b)
        torch.testing.assert_close(y[0, 24:32], small[1] @ (small[0] @ x[0]), rtol=1e-4, atol=1e-4)


def asked(index: tuple[int, ...], prompts: tuple[int, ...]) -> GroupedPunica:
    """Adapters 11 to 15 are in slots 0 to 4."""
    punica = GroupedPunica(64, max_batches=8, device="cpu")
    punica.ranks = [RANK] * SLOTS
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
    punica.used[id(b)] = {0, 1}
    x, logits = torch.randn(3, IN), torch.zeros(3, 21)  # vLLM pads an adapter's width
    punica.add_lora_logits(logits, x, a, b, 1.0)
    expected = b[1, 0, :21] @ (a[1, 0] @ x[1])
    torch.testing.assert_close(logits[1], expected, rtol=1e-4, atol=1e-4)
    assert not logits[[0, 2]].any()


def test_a_slot_of_the_head_is_cleared_where_it_held_something() -> None:
    layer = Layer(*weights())
    used = _clear_what_is_used(layer)
    layer.reset_lora(2)
    assert (used, layer.cleared) == (set(), []), "nothing was there"
    layer.set_lora(2, "a", "b")
    layer.set_lora(2, "c", "d")
    assert (used, layer.cleared) == ({2}, [2]), "one that takes another's place clears it"
    layer.reset_lora(2)
    layer.reset_lora(2)
    assert (used, layer.cleared) == (set(), [2, 2])


def test_a_slot_of_the_head_that_was_half_written_is_cleared() -> None:
    layer = Layer(*weights())
    layer.set_lora = Mock(side_effect=RuntimeError("of another shape"))  # type: ignore[method-assign]
    used = _clear_what_is_used(layer)
    with pytest.raises(RuntimeError, match="shape"):
        layer.set_lora(2, "a", "b")
    assert used == {2}
    layer.reset_lora(2)
    assert (used, layer.cleared) == (set(), [2])


def test_the_embedding_of_a_token_without_an_adapter_stays_as_it_is() -> None:
    b = weights()[1][0]
    punica = asked((0, 12, 15), (0,))
    punica.used[id(b)] = {1, 3, 4}
    low, y = torch.randn(3, RANK), torch.ones(3, 24)
    punica.add_lora_embedding(y, low, b)
    expected = torch.stack([torch.zeros(24), b[1, 0] @ low[1], b[4, 0] @ low[2]]) + 1
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_head_asked_for_other_rows_than_planned_is_our_fault() -> None:
    a, b = (one[0] for one in weights())
    punica = asked((12, 12), (12,))
    punica.used[id(b)] = {1}
    with pytest.raises(AssertionError, match="other rows"):
        punica.add_lora_logits(torch.zeros(2, 24), torch.randn(2, IN), a, b, 1.0)


def test_without_adapters_nothing_is_computed() -> None:
    a, b = weights()
    for one in (*a, *b):
        one.fill_(float("nan"))
    y = torch.ones(2, OUT)
    punica = asked((0, 0), (0,))
    punica.add_lora_linear(y, torch.randn(2, IN), StackedA.of(a), StackedB.of(b), 1.0, OUTS)
    assert (y == 1).all()
