"""Loads an adapter's file into vLLM's form on a CPU, fast: loading blocks the engine's loop.

vLLM reads the file tensor by tensor and parses each name three times, most of the cost of adding an
adapter. Here the file is read at once and parsed names are cached. Owns no check: vLLM has checked
the names of the first adapter that has them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import is_base_embedding_weights, parse_fine_tuned_lora_name

from cluster.adapters import WEIGHTS

#: Sets of names that are remembered: adapters of one base model have few.
_LAYOUTS = 64


@dataclass(frozen=True)
class _Place:
    """Where a tensor belongs."""

    module: str
    down: bool
    """Whether it is A, else B."""


class Checkpoints:
    """Stands where vLLM has `LoRAModel` to read adapters by. `given` is that class."""

    def __init__(self, given: type[LoRAModel] = LoRAModel) -> None:
        self._given = given
        self._layouts = OrderedDict[tuple[str, ...], dict[str, _Place]]()

    def from_local_checkpoint(
        self,
        lora_dir: str,
        expected_lora_modules: set[str],
        peft_helper: PEFTHelper,
        *,
        lora_model_id: int,
        dtype: torch.dtype,
        weights_mapper: Any = None,
        **named: Any,
    ) -> LoRAModel:
        """As vLLM's, which reads the first adapter of its names, and any that is out of the
        ordinary."""
        plain = not (
            peft_helper.rank_pattern or peft_helper.alpha_pattern or peft_helper.modules_to_save
        )
        tensors = load((Path(lora_dir) / WEIGHTS).read_bytes()) if plain else {}
        names = tuple(sorted(tensors))
        layout = self._layouts.get(names)
        if layout is not None:
            self._layouts.move_to_end(names)
            loras = _layers(tensors, layout, peft_helper, dtype)
            return self._given(lora_model_id, peft_helper.r, loras)
        found = self._given.from_local_checkpoint(
            lora_dir,
            expected_lora_modules,
            peft_helper,
            lora_model_id=lora_model_id,
            dtype=dtype,
            weights_mapper=weights_mapper,
            **named,
        )
        if plain and not any("lora_embedding" in name for name in names):
            # PEFT writes the base's head beside an adapter of the head; vLLM leaves it alone.
            given = (name for name in names if not is_base_embedding_weights(name))
            places = {n: _Place(*parse_fine_tuned_lora_name(n, weights_mapper)) for n in given}
            self._layouts[names] = {n: p for n, p in places.items() if p.module in found.loras}
            if len(self._layouts) > _LAYOUTS:
                self._layouts.popitem(last=False)
        return found


def _layers(
    tensors: dict[str, torch.Tensor],
    layout: dict[str, _Place],
    peft: PEFTHelper,
    dtype: torch.dtype,
) -> dict[str, LoRALayerWeights]:
    loras: dict[str, LoRALayerWeights] = {}
    for name, place in layout.items():
        lora = loras.get(place.module)
        if lora is None:
            lora = loras[place.module] = LoRALayerWeights.from_config(place.module, peft)
        tensor = tensors[name]
        if tensor.dtype != dtype:
            tensor = tensor.to(dtype)
        if place.down:
            lora.lora_a = tensor
        else:
            lora.lora_b = tensor
    return loras
