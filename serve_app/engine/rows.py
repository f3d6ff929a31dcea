"""Which rows of a batch are multiplied with which adapter's weights, and how, on a CPU.

Owns the plan for a batch and the layout of a layer's weights. A row never meets another adapter's
weights: a product that overflows in one adapter spoils its own rows only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.engine import kernel

#: From so many rows times ranks on, PyTorch's products are faster than `kernel`'s, which do not
#: block for the cache: 1,000 rows of rank 8, 256 of rank 32, on one core with AVX2; fewer where
#: PyTorch has several.
_PRODUCTS = 8192

Indices = NDArray[np.int64]


def _none() -> Indices:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Plan:
    """Which slot each row of a batch has. A row without an adapter is in none of it."""

    rows: int = 0
    own: tuple[tuple[int, torch.Tensor | None], ...] = ()
    """Slots with products of their own, and which rows they have; None is every row."""
    others: Indices = field(default_factory=_none)
    """The other rows that have a slot, one slot's after another's."""
    slots: Indices = field(default_factory=_none)
    """The slot of each of those."""
    blocks: Indices = field(default_factory=_none)
    """Where among those each block starts that is multiplied together, and where the last ends."""

    @property
    def empty(self) -> bool:
        """Whether no row has an adapter."""
        return not self.own and not len(self.others)


def plan(slots: Sequence[int | None], ranks: Sequence[int]) -> Plan:
    """How to multiply rows with these slots, None being no adapter; `ranks` are the slots'."""
    rows = defaultdict[int, list[int]](list)
    for row, slot in enumerate(slots):
        if slot is not None:
            rows[slot].append(row)
    own, threads = list[tuple[int, torch.Tensor | None]](), torch.get_num_threads()
    others, theirs, blocks = list[int](), list[int](), list[int]()
    for slot, mine in rows.items():
        if len(mine) * ranks[slot] * threads >= _PRODUCTS:
            every = len(mine) == len(slots)
            own.append((slot, None if every else torch.tensor(mine)))
            continue
        blocks.extend(range(len(others), len(others) + len(mine), kernel.BLOCK))
        others.extend(mine)
        theirs.extend([slot] * len(mine))
    blocks.append(len(others))
    arrays = (np.array(one, np.int64) for one in (others, theirs, blocks))
    return Plan(len(slots), tuple(own), *arrays)


class StackedA(tuple[torch.Tensor, ...]):
    """A of each slice of a layer, as vLLM has it, (slots, 1, rank, in): views of `whole`.

    What vLLM writes to a slot is where it is read, in the order and the precision it is multiplied
    in.
    """

    whole: torch.Tensor
    """(slots, slices * rank, in), of 32 bits."""
    array: NDArray[np.float32]
    """The same memory."""
    ranks: Indices
    """(slots,): how many ranks of each slot are in use; no other is read."""

    @classmethod
    def of(cls, slices: Sequence[torch.Tensor]) -> Self:
        """The same weights; `slices` are as vLLM makes them."""
        rank = slices[0].shape[2]
        whole = torch.cat([one[:, 0].float() for one in slices], 1)
        views = cls(whole.narrow(1, at, rank).unsqueeze(1) for at in range(0, whole.shape[1], rank))
        views.whole, views.array = whole, whole.numpy()
        views.ranks = np.full(len(whole), rank)
        return views


class StackedB(tuple[torch.Tensor, ...]):
    """B of each slice of a layer, as vLLM has it, (slots, 1, out, rank): views of `whole`."""

    whole: torch.Tensor
    """(slots, rank, all outs), of 32 bits."""
    array: NDArray[np.float32]
    """The same memory."""
    outs: Indices
    """Where each slice's outs start, and where the last one's end."""

    @classmethod
    def of(cls, slices: Sequence[torch.Tensor]) -> Self:
        """The same weights; `slices` are as vLLM makes them."""
        whole = torch.cat([one[:, 0].float().transpose(1, 2) for one in slices], 2)
        outs = np.cumsum([0, *(one.shape[2] for one in slices)])
        views = cls(
            whole[:, :, first:last].transpose(1, 2).unsqueeze(1) for first, last in pairwise(outs)
        )
        views.whole, views.array, views.outs = whole, whole.numpy(), outs
        return views


@dataclass(frozen=True)
class Weights:
    """An adapter's for one layer, arranged as slots are, so that to take one is to copy them."""

    a: NDArray[np.float32]
    """(slices, rank, in); the rank is the highest of its slices."""
    b: NDArray[np.float32]
    """(rank, all outs)"""


def arrange(
    a: StackedA,
    b: StackedB,
    given_a: Sequence[torch.Tensor | None],
    given_b: Sequence[torch.Tensor | None],
) -> Weights | None:
    """An adapter's weights for the layer of `a` and `b`; None where they are of another shape.

    For each slice `given_a` (rank, in) and `given_b` (out, rank), or None in both.
    """
    if not len(given_a) == len(given_b) == len(a):
        return None
    ranks = list[int]()
    for down, up, stacked_a, stacked_b in zip(given_a, given_b, a, b, strict=True):
        if down is None or up is None:
            if down is not up:
                return None
            ranks.append(0)
            continue
        used, width = down.shape
        if (
            width != stacked_a.shape[3]
            or up.shape != (stacked_b.shape[2], used)
            or used > stacked_a.shape[2]
        ):
            return None
        ranks.append(used)
    rank = max(ranks)
    found_a = np.empty((len(a), rank, a.array.shape[2]), np.float32)
    found_b = np.empty((rank, b.array.shape[2]), np.float32)
    for number, (down, up, used) in enumerate(zip(given_a, given_b, ranks, strict=True)):
        mine = found_b[:, b.outs[number] : b.outs[number + 1]]
        if down is not None and up is not None:
            found_a[number, :used] = down.float().numpy()
            mine[:used] = up.float().numpy().T
        # What is multiplied with nothing must still be a number.
        found_a[number, used:] = 0.0
        mine[used:] = 0.0
    return Weights(found_a, found_b)


def fill(a: StackedA, b: StackedB, slot: int, weights: Weights) -> None:
    """Put an adapter's weights, arranged for this layer, into a slot."""
    slices, rank, width = weights.a.shape
    a.array[slot].reshape(slices, -1, width)[:, :rank] = weights.a
    b.array[slot, :rank] = weights.b
    a.ranks[slot] = rank


def add_layer(y: torch.Tensor, x: torch.Tensor, plan: Plan, a: StackedA, b: StackedB) -> None:
    """Add each row's adapter to `y` (rows, all outs), in place, in 32 bits until then.

    `x` is (rows, in).
    """
    # The kernel checks nothing.
    assert len(x) == len(y) == plan.rows, "the layer has other rows than planned"
    assert x.shape[1] == a.whole.shape[2], "the layer is of another width"
    assert y.shape[1] == b.whole.shape[2], "the layer is of another width"
    if y.dtype != torch.float32 or not y.is_contiguous():
        found = torch.zeros(y.shape)
        _add(found, x.float().contiguous(), plan, a, b)
        y.add_(found)
    else:
        _add(y, x.float().contiguous(), plan, a, b)


def _add(y: torch.Tensor, x: torch.Tensor, plan: Plan, a: StackedA, b: StackedB) -> None:
    for slot, rows in plan.own:
        mine = x if rows is None else x.index_select(0, rows)
        into = y if rows is None else torch.zeros(len(mine), y.shape[1])
        rank = int(a.ranks[slot])
        for low, outs in _slices(rank, a, b):
            down = mine @ a.whole[slot, low].T
            into[:, outs].addmm_(down, b.whole[slot, :rank, outs])
        if rows is not None:
            y.index_add_(0, rows, into)
    if len(plan.others):
        batch = plan.others, plan.slots, plan.blocks
        kernel.add(y.numpy(), x.numpy(), batch, (a.array, b.array, b.outs, a.ranks))


def _slices(rank: int, a: StackedA, b: StackedB) -> Iterator[tuple[slice, slice]]:
    """Of each slice: which ranks of A are in use, and its outs."""
    most = a.whole.shape[1] // len(a)
    for number, (first, last) in enumerate(pairwise(b.outs)):
        yield slice(number * most, number * most + rank), slice(first, last)


def warm() -> None:
    """Compile now what the first batch would wait for."""
    a, b = StackedA.of([torch.zeros(1, 1, 1, 1)]), StackedB.of([torch.zeros(1, 1, 1, 1)])
    add_layer(torch.zeros(1, 1), torch.zeros(1, 1), plan([0], [1]), a, b)


def add_rows(
    y: torch.Tensor, rows: list[int], low: torch.Tensor, b: torch.Tensor, scale: float
) -> None:
    """Add `low` (n, rank) times `b` (out, rank) to these rows of `y`, in place.

    vLLM pads the widths of an adapter and of a model differently.
    """
    width = min(b.shape[0], y.shape[1])
    found = low @ b[:width].float().T
    y[:, :width].index_add_(0, torch.tensor(rows), found.to(y.dtype), alpha=scale)
