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
    add_layer,
    add_rows,
    fill,
    plan,
    warm,
)


class _InUse:
    """Slots of a head or an embedding whose weights are not all nothing, as they are for an adapter
    without any there, which is nearly every one."""

    def __init__(self) -> None:
        self._slots, self._version = frozenset[int](), -1

    def among(self, stacked: torch.Tensor) -> frozenset[int]:
        """Those of `stacked` (slots, ...), looked for again after vLLM wrote to it."""
        if stacked._version != self._version:
            self._slots = frozenset(stacked.flatten(1).any(1).nonzero().flatten().tolist())
            self._version = stacked._version
        return self._slots


class GroupedPunica(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's LoRA arithmetic for CPU, with rows of one adapter multiplied together."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._plan = Plan()
        self.ranks: Sequence[int] = ()
        """The highest of each slot; says only which way is the faster."""
        self._tokens = self._prompts = list[int | None]()
        self._head, self._embedding = _InUse(), _InUse()
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
        for slot in self._embedding.among(lora_b_stacked):
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
        for slot in self._head.among(lora_a_stacked):
            if rows := [row for row, one in enumerate(self._prompts) if one == slot]:
                assert len(x) == len(self._prompts), "the head is asked for other rows"
                low = x[rows].float() @ lora_a_stacked[slot, 0].float().T
                add_rows(y, rows, low, lora_b_stacked[slot, 0], scale)


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
        parts = [one if isinstance(one, list) else [one] for one in (lora_a, lora_b)]
        if not fill(a, b, index, *parts):
            reset_lora(index)
            set_lora(index, lora_a, lora_b)
            a.ranks[index] = a[0].shape[2]
        highest[index] = max(highest[index], a.ranks[index])

    layer.set_lora, layer.reset_lora = write, reset


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
            elif isinstance(layer, LogitsProcessorWithLoRA):
                _spare_heads(self.model_runner, layer)
        warm()
        _find_at_once(self.model_runner.lora_manager)
        self.model_runner.lora_manager._lora_model_cls = Checkpoints()
