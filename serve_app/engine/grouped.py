"""LoRA on a CPU, adapter by adapter: vLLM's own way copies an adapter's weights for every token.

Owns what of vLLM is replaced on a CPU. Its `PunicaWrapperCPU` also takes the weights of the last
slot for rows without an adapter (index -1), so that the base model's answers would be another
tenant's once all slots are taken; here such rows are left as they are. It changes nothing on a GPU,
where vLLM has kernels for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.lora.layers.vocab_parallel_embedding import VocabParallelEmbeddingWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker

from serve_app.engine.checkpoint import Checkpoints
from serve_app.engine.norms import use_kernels
from serve_app.engine.rows import (
    Indices,
    Plan,
    StackedA,
    StackedB,
    Weights,
    add_layer,
    add_rows,
    arrange,
    fill,
    plan,
    warm,
)


class GroupedPunica(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's LoRA arithmetic for CPU, with rows of one adapter multiplied together."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._plan = Plan()
        self.ranks: Sequence[int] = ()
        """The highest rank of each slot; used only to choose the faster algorithm."""
        self._tokens = self._prompts = list[int | None]()
        self.used = dict[int, set[int]]()
        """Slots with weights of an output head or an embedding, by the identity of its stacked B;
        few adapters have them."""
        self.of_prompts = False
        """Whether logits are computed of given prompts' tokens, more than a row for each request.
        Only adapters without a head are asked for those."""

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
        self._tokens = [slots[i] if i > 0 else None for i in mapping.index_mapping]
        self._prompts = [slots[i] if i > 0 else None for i in mapping.prompt_mapping]
        self._plan = plan(self._tokens, self.ranks)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: StackedA,
        lora_b_stacked: StackedB,
        scale: float,
        *_output_slices: Any,
        **_kwargs: Any,
    ) -> None:
        """Add the adapters of a linear layer to `y`, in place; its weights are side by side."""
        if self._plan.empty:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_layer(y, x, self._plan, lora_a_stacked, lora_b_stacked)

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
        for slot in self.used[id(lora_b_stacked)]:
            if rows := [row for row, one in enumerate(self._tokens) if one == slot]:
                add_rows(y, rows, x[rows].float(), lora_b_stacked[slot, 0], 1.0)

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
        if self.of_prompts:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot in self.used[id(lora_b_stacked)]:
            if rows := [row for row, one in enumerate(self._prompts) if one == slot]:
                assert len(x) == len(self._prompts), "the head is asked for other rows"
                low = x[rows].float() @ lora_a_stacked[slot, 0].float().T
                add_rows(y, rows, low, lora_b_stacked[slot, 0], scale)


def _as_parts(lora_a: Any, lora_b: Any) -> list[list[torch.Tensor | None]]:
    """What vLLM has for a layer, which is in one part or in several."""
    return [one if isinstance(one, list) else [one] for one in (lora_a, lora_b)]


def _write_in_place(layer: BaseLinearLayerWithLoRA, highest: Indices) -> None:
    """Have `layer` write an adapter's own ranks, in their order: vLLM clears a whole slot first,
    for the highest rank there is, and a slot is written to whenever an adapter comes back.

    `highest` (slots,) takes in the ranks of all layers.
    """
    a, b = layer.lora_a_stacked, layer.lora_b_stacked
    set_lora, reset_lora = layer.set_lora, layer.reset_lora

    def reset(index: int) -> None:
        a.ranks[index] = 0

    def write(index: int, lora_a: Any, lora_b: Any) -> None:
        found = lora_a if isinstance(lora_a, Weights) else arrange(a, b, *_as_parts(lora_a, lora_b))
        if found is not None:
            fill(a, b, index, found)
        else:
            reset_lora(index)
            set_lora(index, lora_a, lora_b)
            a.ranks[index] = a[0].shape[2]
        highest[index] = max(highest[index], a.ranks[index])

    layer.set_lora, layer.reset_lora = write, reset


def _arrange_once(held: LoRAModelManager) -> None:
    """Have `held` keep what it reads arranged as slots are: an adapter takes a slot far more often
    than it is read, and while it does the engine does nothing else.

    Weights of less than 32 bits are kept as they are, for they would take twice the memory so; what
    an adapter lacks of a layer is kept as zeros.
    """
    register = held._add_adapter

    def add(lora: LoRAModel) -> None:
        register(lora)
        for name, layer in held.modules.items():
            weights = held._get_lora_layer_weights(lora, name)
            if weights is None or not isinstance(layer, BaseLinearLayerWithLoRA):
                continue
            parts = _as_parts(weights.lora_a, weights.lora_b)
            if all(one is None or one.dtype is torch.float32 for part in parts for one in part):
                found = arrange(layer.lora_a_stacked, layer.lora_b_stacked, *parts)
                if found is not None:
                    weights.lora_a = weights.lora_b = found

    held._add_adapter = add


def _clear_what_is_used(layer: Any) -> set[int]:
    """Have a head or an embedding clear those slots only that hold something; which ones do."""
    used = set[int]()
    set_lora, reset_lora = layer.set_lora, layer.reset_lora

    def reset(index: int) -> None:
        if index in used:
            used.discard(index)
            reset_lora(index)

    def write(index: int, lora_a: Any, lora_b: Any) -> None:
        try:
            set_lora(index, lora_a, lora_b)
        finally:  # it clears the slot first, and may be stopped by a shape half-way
            used.add(index)

    layer.set_lora, layer.reset_lora = write, reset
    return used


def _find_at_once(manager: LRUCacheWorkerLoRAManager) -> None:
    """Have `manager` look for an adapter where it is held: vLLM copies the list of all that are
    held for each adapter of each batch, a quarter of the time with a thousand."""
    add_adapter, held = manager.add_adapter, manager._adapter_manager

    def add(request: LoRARequest) -> bool:
        int_id = request.lora_int_id
        if int_id not in held._registered_adapters or request.load_inplace:
            return bool(add_adapter(request))
        held._registered_adapters.touch(int_id)
        held.activate_adapter(int_id)
        return True

    manager.add_adapter = add


def _spare_heads(runner: Any, logits: LogitsProcessorWithLoRA) -> None:
    """Have `runner` leave the heads of adapters out of what it says of prompts: vLLM has planned
    for one row of each request then."""
    say, wrapper = runner._get_prompt_logprobs_dict, logits.punica_wrapper

    def spared(*arguments: Any) -> Any:
        wrapper.of_prompts = True
        try:
            return say(*arguments)
        finally:
            wrapper.of_prompts = False

    runner._get_prompt_logprobs_dict = spared


class GroupedWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with `GroupedPunica`, and norms by kernels."""

    def load_model(self, *arguments: Any, **named: Any) -> None:
        """Load the model; its LoRA layers take the platform's arithmetic while they are made."""
        wrapper = f"{GroupedPunica.__module__}.{GroupedPunica.__qualname__}"
        current_platform.get_punica_wrapper = lambda: wrapper
        use_kernels()
        # vLLM compiles one line of its sampler when the first log-probability is asked for, which
        # takes seconds of that request, and on a CPU saves nothing.
        torch.compiler.set_stance("force_eager")
        super().load_model(*arguments, **named)
        if not self.model_runner.lora_config:
            return
        highest = np.zeros(self.model_runner.lora_config.max_loras, np.int64)
        for layer in self.model_runner.model.modules():
            if isinstance(layer, BaseLinearLayerWithLoRA):
                layer.lora_a_stacked = StackedA.of(layer.lora_a_stacked)
                layer.lora_b_stacked = StackedB.of(layer.lora_b_stacked)
                layer.punica_wrapper.ranks = highest
                _write_in_place(layer, highest)
            elif isinstance(layer, LogitsProcessorWithLoRA | VocabParallelEmbeddingWithLoRA):
                layer.punica_wrapper.used[id(layer.lora_b_stacked)] = _clear_what_is_used(layer)
                if isinstance(layer, LogitsProcessorWithLoRA):
                    _spare_heads(self.model_runner, layer)
        warm()
        _find_at_once(self.model_runner.lora_manager)
        _arrange_once(self.model_runner.lora_manager._adapter_manager)
        self.model_runner.lora_manager._lora_model_cls = Checkpoints()
