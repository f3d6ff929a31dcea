"""The base model and its adapters in PyTorch: made for training, loaded for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from cluster.config import BaseModelRef
from train_jobs.config import LoraConfig


def load_base(ref: BaseModelRef, dtype: torch.dtype) -> Any:
    """The frozen base model in `dtype`."""
    return AutoModelForCausalLM.from_pretrained(ref.path, dtype=dtype, local_files_only=True)


def add_adapter(model: Any, lora: LoraConfig) -> Any:
    """`model` with a fresh LoRA adapter (Hu et al. 2021) as its only trainable parameters."""
    targets = lora.target_modules
    return get_peft_model(
        model,
        PeftLoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        ),
    )


def with_adapter(ref: BaseModelRef, adapter: Path | None, dtype: torch.dtype) -> Any:
    """The base model in `dtype`, with `adapter` beside its weights where one is given."""
    model = load_base(ref, dtype).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, str(adapter)).eval()
