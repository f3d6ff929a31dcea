"""LoRA on a CPU, adapter by adapter: vLLM's own way copies an adapter's weights for every token.

Owns which rows of a batch are multiplied together. vLLM's `PunicaWrapperCPU` also takes the weights
of the last slot for rows without an adapter (index -1), so that the base model's answers would be
another tenant's once all slots are taken; here such rows are left as they are. It changes nothing
on a GPU, where vLLM has kernels for this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

from serve_app.engine.norms import use_kernels

# Costs in padded rows, measured on one core for 256 to 704 wide layers: two products of their own
# take 30 us, those of a batch of matrices 30 us and 2 us for each of its rows.
_OWN = 16
_BATCH = 16


@dataclass(frozen=True)
class Padded:
    """Rows of several adapters, a matrix for each, as long as the longest."""

    slots: torch.Tensor
    """(adapters,)"""
    taken: torch.Tensor
    """(adapters * longest,): which row comes here; any where there is none."""
    rows: slice | torch.Tensor
    """(n,): the rows in question, ascending"""
    found: torch.Tensor
    """(n,): where their results are"""


@dataclass(frozen=True)
class Plan:
    """Which rows of a batch are multiplied with which slot's weights. Rows of no adapter are in
    none."""

    alone: tuple[tuple[int, slice | torch.Tensor], ...] = ()
    """Slots with many rows, and their rows."""
    together: Padded | None = None

    @property
    def empty(self) -> bool:
        """Whether no row has an adapter."""
        return not self.alone and self.together is None


def plan(slots: Sequence[int | None]) -> Plan:
    """The cheapest plan for rows with these slots; None is no adapter."""
    rows = defaultdict[int, list[int]](list)
    for row, slot in enumerate(slots):
        if slot is not None:
            rows[slot].append(row)
    order = sorted(rows, key=lambda slot: -len(rows[slot]))

    def cost(own: int) -> int:
        rest = order[own:]
        return own * _OWN + (_BATCH + len(rest) * len(rows[rest[0]]) if rest else 0)

    own = min(range(len(order) + 1), key=cost)
    alone = tuple((slot, _span(rows[slot])) for slot in order[:own])
    return Plan(alone, _padded({slot: rows[slot] for slot in order[own:]}))


def _span(rows: list[int]) -> slice | torch.Tensor:
    """Ascending rows, as a slice where there is no gap."""
    first, last = rows[0], rows[-1]
    if last - first + 1 == len(rows):
        return slice(first, last + 1)
    return torch.tensor(rows)


def _padded(rows: dict[int, list[int]]) -> Padded | None:
    if not rows:
        return None
    longest = max(len(one) for one in rows.values())
    taken, found = list[int](), dict[int, int]()
    for number, one in enumerate(rows.values()):
        taken += one + one[:1] * (longest - len(one))
        found.update(zip(one, range(number * longest, (number + 1) * longest), strict=False))
    ordered = sorted(found)
    return Padded(
        torch.tensor(list(rows)),
        torch.tensor(taken),
        _span(ordered),
        torch.tensor([found[row] for row in ordered]),
    )


class Product:
    """The rows of one layer's input, laid out by a plan, to be multiplied with weights."""

    def __init__(self, plan: Plan, x: torch.Tensor) -> None:
        """`x` is (rows, in)."""
        self._alone = [(slot, rows, x[rows].float()) for slot, rows in plan.alone]
        self._rest = plan.together
        if self._rest is not None:
            taken = x.index_select(0, self._rest.taken)
            self._taken = taken.view(len(self._rest.slots), -1, x.shape[1]).float()

    def add(self, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        """Add each row's adapter to `y` (rows, out), in 32 bits until then.

        `a` is (slots, 1, rank, in), `b` (slots, 1, out, rank). vLLM pads the widths of an adapter
        and of a model differently.
        """
        width = min(b.shape[2], y.shape[1])
        a, b, y = a[:, 0], b[:, 0, :width], y[:, :width]
        for slot, rows, x in self._alone:
            _put(y, rows, x @ a[slot].float().T @ b[slot].float().T, scale)
        if (rest := self._rest) is not None:
            low = torch.bmm(self._taken, _columns(a, rest.slots))
            self._put_rest(y, rest, low, b, scale)

    def add_up(self, y: torch.Tensor, b: torch.Tensor) -> None:
        """Add to `y` (rows, out) what was laid out, which is (rows, rank), times `b` as above."""
        b = b[:, 0]
        for slot, rows, x in self._alone:
            _put(y, rows, x @ b[slot].float().T, 1.0)
        if (rest := self._rest) is not None:
            self._put_rest(y, rest, self._taken, b, 1.0)

    @staticmethod
    def _put_rest(
        y: torch.Tensor, rest: Padded, low: torch.Tensor, b: torch.Tensor, scale: float
    ) -> None:
        high = torch.bmm(low, _columns(b, rest.slots)).flatten(0, 1)
        _put(y, rest.rows, high.index_select(0, rest.found), scale)


def _columns(weights: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return weights.index_select(0, slots).float().transpose(1, 2)


def _put(y: torch.Tensor, rows: slice | torch.Tensor, found: torch.Tensor, scale: float) -> None:
    if isinstance(rows, slice):
        y[rows].add_(found, alpha=scale)
    else:
        y.index_add_(0, rows, found.to(y.dtype), alpha=scale)


class GroupedPunica(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's LoRA arithmetic for CPU, with rows of one adapter multiplied together."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tokens, self._sampled, self._prompts = Plan(), Plan(), 0

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Plan the next batch; `mapping` has an adapter for each token, and for each prompt."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        slots = {int_id: slot for slot, int_id in enumerate(lora_index_to_id) if int_id}
        self._tokens = plan([slots[i] if i > 0 else None for i in mapping.index_mapping])
        self._sampled = plan([slots[i] if i > 0 else None for i in mapping.prompt_mapping])
        self._prompts = len(mapping.prompt_mapping)

    def add_lora_linear(  # noqa: PLR0917 - as vLLM calls it
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_kwargs: Any,
    ) -> None:
        """Add the adapters of a linear layer to `y`, in place."""
        if self._tokens.empty:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        product, start = Product(self._tokens, x), 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            product.add(y[:, start : start + width], a, b, scale)
            start += width

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **_kwargs: Any,
    ) -> None:
        """Add the adapters of the embedding to `y`; `x` (tokens, rank) is what A has for each."""
        assert add_inputs
        if not self._tokens.empty:
            Product(self._tokens, x).add_up(y, lora_b_stacked)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_kwargs: Any,
    ) -> None:
        """Add the adapters of the head to the logits `y`, in place."""
        if self._sampled.empty:
            return
        assert x.numel() == self._prompts * x.shape[-1], "the head is asked for other rows"
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        Product(self._sampled, x).add(y, lora_a_stacked, lora_b_stacked, scale)


class GroupedWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with `GroupedPunica`, and norms by kernels."""

    def load_model(self, *arguments: Any, **named: Any) -> None:
        """Load the model; its LoRA layers take the platform's arithmetic while they are made."""
        wrapper = f"{GroupedPunica.__module__}.{GroupedPunica.__qualname__}"
        current_platform.get_punica_wrapper = lambda: wrapper
        use_kernels()
        super().load_model(*arguments, **named)
