"""Which rows of a batch are multiplied with which adapter's weights, and how, on a CPU.

Owns the plan for a batch and the layout of a layer's weights. A row never meets another adapter's
weights in a way that could change it, provided that B is finite, which `cluster.adapters` sees to:
a product that overflows in one adapter spoils its own rows only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Generic, Self, TypeVar

import torch

_Made = TypeVar("_Made")

# Costs of one layer in microseconds, measured on one core for 256 to 704 wide layers of rank 8 with
# weights that were not in its cache.
_OWN = 30.0
"""Products for one adapter's rows."""
_BATCH = 60.0
"""Products for several slots at once,"""
_SLOT = 1.5
"""for each of them, and"""
_COPY = 10.0
"""where its weights are first put beside the others'."""
_ROW = 1.3
"""Each row laid out for either, padding included."""
_WIDE = 35.0
"""Products of every row with several slots,"""
_PAIR = 0.38
"""for each row and slot."""


@dataclass(frozen=True)
class Together:
    """Slots that are multiplied at once."""

    slots: tuple[int, ...]
    wide: bool = False
    """Every row with every slot, and what is not its own is dropped in between; otherwise a batch
    of matrices, each with rows of its own."""

    @cached_property
    def index(self) -> slice | torch.Tensor:
        """Of their weights among all slots'; a slice is read where it lies."""
        if self.slots == tuple(range(self.slots[0], self.slots[-1] + 1)):
            return slice(self.slots[0], self.slots[-1] + 1)
        return torch.tensor(self.slots)


@dataclass(frozen=True)
class Plan:
    """In which order rows are laid out, and which are then multiplied together.

    First those of slots with products of their own, then those of slots that are multiplied at
    once, as many for each, padded. A row of no adapter is not laid out, and finds the row of zeros
    after the last. Where slots are multiplied with every row, rows stay where they are.
    """

    rows: int = 0
    alone: tuple[tuple[int, slice], ...] = ()
    """Slots, and their rows as they are laid out, without gaps from the first on."""
    together: Together | None = None
    """Slots that share what is laid out after that."""
    taken: torch.Tensor = field(default_factory=lambda: torch.tensor(()))
    """(laid out,): which row comes there; any where there is none."""
    found: torch.Tensor = field(default_factory=lambda: torch.tensor(()))
    """(rows,): where each row's result is."""
    others: torch.Tensor | None = None
    """(rows, slots, 1): which slots are not the row's own, where every row has every slot."""

    @property
    def empty(self) -> bool:
        """Whether no row has an adapter."""
        return not self.alone and self.together is None

    @property
    def only(self) -> int | None:
        """The slot of every row; None where it is not one."""
        if len(self.alone) == 1 and self.alone[0][1] == slice(0, self.rows):
            return self.alone[0][0]
        return None


def plan(slots: Sequence[int | None], beside: Together | None = None) -> Plan:
    """The cheapest plan for rows with these slots; None is no adapter.

    `beside` are slots whose weights an earlier plan had put side by side.
    """
    rows = defaultdict[int, list[int]](list)
    for row, slot in enumerate(slots):
        if slot is not None:
            rows[slot].append(row)
    order = sorted(rows, key=lambda slot: -len(rows[slot]))
    if not order:
        return Plan(len(slots))
    if len(rows[order[0]]) == len(slots):
        return _laid_out(len(slots), rows, order, None)
    least, together = _wide(order, len(slots), beside)
    own, alone = 0, 0.0
    for number, slot in enumerate(order):
        longest = len(rows[slot])
        cost, shared = _batch(order[number:], longest, beside)
        if alone + cost < least:
            least, own, together = alone + cost, number, shared
        alone += _OWN + _ROW * longest
    if alone < least:
        return _laid_out(len(slots), rows, order, None)
    if together.wide:
        return Plan(len(slots), together=together, others=_others(slots, together))
    return _laid_out(len(slots), rows, order[:own], together)


def _others(slots: Sequence[int | None], together: Together) -> torch.Tensor:
    mine = torch.tensor([-1 if slot is None else slot for slot in slots])
    return (mine[:, None] != torch.tensor(together.slots))[:, :, None]


def _wide(slots: Sequence[int], rows: int, beside: Together | None) -> tuple[float, Together]:
    """The cost of multiplying all rows with these slots."""
    cost, chosen = _beside(slots, _PAIR * rows, beside, wide=True)
    return _WIDE + cost, chosen


def _batch(slots: Sequence[int], longest: int, beside: Together | None) -> tuple[float, Together]:
    """The cost of multiplying the slots' own rows, at most `longest` for each."""
    each = _SLOT + _ROW * longest
    cost, chosen = _beside(slots, each, beside, wide=False)
    span = range(min(slots), max(slots) + 1)
    if each * len(span) <= cost:
        cost, chosen = each * len(span), Together(tuple(span))
    return _BATCH + cost, chosen


def _beside(
    slots: Sequence[int], each: float, beside: Together | None, *, wide: bool
) -> tuple[float, Together]:
    """Which slots to have side by side, `beside` or others, and what they cost."""
    kept = set(beside.slots) if beside is not None and beside.wide == wide else set[int]()
    if beside is not None and kept.issuperset(slots):
        new = (each + _COPY) * len(slots), Together(tuple(sorted(slots)), wide)
        return min((each * len(kept), beside), new, key=itemgetter(0))
    # With those of before, while they are few, so that batches of a few adapters soon agree.
    union = kept.union(slots)
    chosen = union if 2 * len(union) <= 3 * len(slots) else slots
    return (each + _COPY) * len(chosen), Together(tuple(sorted(chosen)), wide)


def _laid_out(
    count: int, rows: Mapping[int, list[int]], own: Sequence[int], together: Together | None
) -> Plan:
    taken, found, alone = list[int](), dict[int, int](), list[tuple[int, slice]]()

    def lay(one: list[int], length: int) -> slice:
        start = len(taken)
        found.update(zip(one, range(start, start + length), strict=False))
        taken.extend(one + [0] * (length - len(one)))
        return slice(start, len(taken))

    for slot in own:
        alone.append((slot, lay(rows[slot], len(rows[slot]))))
    if together is not None:
        shared = [rows.get(slot, []) if slot not in own else [] for slot in together.slots]
        longest = max(map(len, shared))
        for one in shared:
            lay(one, longest)
    nothing = len(taken)
    return Plan(
        count,
        tuple(alone),
        together,
        torch.tensor(taken),
        torch.tensor([found.get(row, nothing) for row in range(count)]),
    )


class _Beside(Generic[_Made]):
    """What was last made of some slots' weights: kept until it is asked for other slots, or
    anything was written to one."""

    def __init__(self, every: torch.Tensor, make: Callable[[Together], _Made]) -> None:
        self._every, self._make = every, make
        self._kept: tuple[Together, int, _Made] | None = None

    def of(self, together: Together) -> _Made:
        version = self._every._version  # PyTorch counts what is written to a tensor and its views
        if self._kept is None or self._kept[:2] != (together, version):
            self._kept = (together, version, self._make(together))
        return self._kept[2]


class Weights:
    """One matrix for each slot, (slots, in, out) of 32 bits."""

    def __init__(self, every: torch.Tensor) -> None:
        self.every = every
        self._beside = _Beside(every, lambda together: every[together.index])

    def of(self, together: Together) -> torch.Tensor:
        """Those of some slots, side by side, (len(slots), in, out)."""
        if isinstance(together.index, slice):
            return self.every[together.index]
        return self._beside.of(together)


class StackedA(tuple[torch.Tensor, ...]):
    """A of each slice of a layer, as vLLM has it, (slots, 1, rank, in): views of `whole`.

    What vLLM writes to a slot is where it is read, in the order and the precision it is multiplied
    in, and one product has every slice of the layer.
    """

    whole: Weights
    """Out of them are slices * rank."""
    _wide: _Beside[tuple[torch.Tensor, ...]]

    @classmethod
    def of(cls, slices: Sequence[torch.Tensor]) -> Self:
        """The same weights; `slices` are as vLLM makes them."""
        rank = slices[0].shape[2]
        whole = torch.cat([one[:, 0].float().transpose(1, 2) for one in slices], 2)
        starts = range(0, whole.shape[2], rank)
        views = cls(whole.narrow(2, at, rank).transpose(1, 2).unsqueeze(1) for at in starts)
        views.whole = Weights(whole)

        def side_by_side(together: Together) -> tuple[torch.Tensor, ...]:
            parts = whole[together.index].split_with_sizes([rank] * len(slices), 2)
            return tuple(part.transpose(0, 1).flatten(1) for part in parts)

        views._wide = _Beside(whole, side_by_side)
        return views

    def wide(self, together: Together) -> tuple[torch.Tensor, ...]:
        """Some slots' A side by side, (in, slots * rank) for each slice."""
        return self._wide.of(together)


class StackedB(tuple[torch.Tensor, ...]):
    """B of each slice of a layer, as vLLM has it, (slots, 1, out, rank): views of `parts`."""

    parts: tuple[Weights, ...]
    """For each slice; into them go ranks."""

    @classmethod
    def of(cls, slices: Sequence[torch.Tensor]) -> Self:
        """The same weights; `slices` are as vLLM makes them."""
        parts = [one[:, 0].float().transpose(1, 2).contiguous() for one in slices]
        views = cls(part.transpose(1, 2).unsqueeze(1) for part in parts)
        views.parts = tuple(map(Weights, parts))
        return views


def add_layer(y: torch.Tensor, x: torch.Tensor, plan: Plan, a: StackedA, b: StackedB) -> None:
    """Add each row's adapter to `y` (rows, all outs), in place, in 32 bits until then.

    `x` is (rows, in).
    """
    if (slot := plan.only) is not None:
        low = x.float() @ a.whole.every[slot]
        for ranks, outs, part in _slices(b):
            _add_product(y[:, outs], low[:, ranks], part.every[slot])
        return
    if plan.others is not None:
        _add_wide(y, x.float(), plan, a, b)
        return
    laid = x.index_select(0, plan.taken).float()
    high = torch.empty(len(laid) + 1, y.shape[1])
    high[-1] = 0.0
    start = 0
    for slot, at in plan.alone:
        low = laid[at] @ a.whole.every[slot]
        for ranks, outs, part in _slices(b):
            torch.mm(low[:, ranks], part.every[slot], out=high[at, outs])
        start = at.stop
    if (together := plan.together) is not None:
        shape = (len(together.slots), (len(laid) - start) // len(together.slots))
        low = torch.bmm(laid[start:].view(*shape, -1), a.whole.of(together))
        rest = high[start:-1].view(*shape, -1)
        for ranks, outs, part in _slices(b):
            # Batches of matrices are twice as fast where nothing is between their rows.
            rest[:, :, outs] = torch.bmm(low[:, :, ranks].contiguous(), part.of(together))
    y.add_(high.index_select(0, plan.found))


def _add_wide(y: torch.Tensor, x: torch.Tensor, plan: Plan, a: StackedA, b: StackedB) -> None:
    assert plan.together is not None
    assert plan.others is not None
    for (_, outs, part), weights in zip(_slices(b), a.wide(plan.together), strict=True):
        low = (x @ weights).view(*plan.others.shape[:2], -1)
        # Filled, not multiplied with nothing: what is infinite in one adapter stays out of others.
        low = low.masked_fill_(plan.others, 0.0).flatten(1)
        _add_product(y[:, outs], low, part.of(plan.together).flatten(0, 1))


def _add_product(y: torch.Tensor, low: torch.Tensor, b: torch.Tensor) -> None:
    if y.dtype == low.dtype:
        y.addmm_(low, b)
    else:
        y.add_(low @ b)


def _slices(b: StackedB) -> Iterator[tuple[slice, slice, Weights]]:
    """Of each slice: its ranks, its outs, its B."""
    ranks = outs = 0
    for part in b.parts:
        _, rank, width = part.every.shape
        yield slice(ranks, ranks + rank), slice(outs, outs + width), part
        ranks, outs = ranks + rank, outs + width


def add_rows(
    y: torch.Tensor, rows: list[int], low: torch.Tensor, b: torch.Tensor, scale: float
) -> None:
    """Add `low` (n, rank) times `b` (out, rank) to these rows of `y`, in place.

    vLLM pads the widths of an adapter and of a model differently.
    """
    width = min(b.shape[0], y.shape[1])
    found = low @ b[:width].float().T
    y[:, :width].index_add_(0, torch.tensor(rows), found.to(y.dtype), alpha=scale)
