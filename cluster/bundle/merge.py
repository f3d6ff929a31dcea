"""Merges base model and adapter into one plain model, and checks it by the trainer's probes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.records.adapter import GoldenProbe


def merge(base: Path, adapter: Path, out: Path, dtype: str) -> Any:
    """Write the merged weights to `out` in Hugging Face's format; the model.

    Merged in 32 bits, whatever is written: rounded once, not twice.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    # `safe_merge` raises where a merged weight is not a finite number.
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged = merged.to(getattr(torch, dtype)).eval()
    merged.save_pretrained(out, safe_serialization=True)
    return merged


def save_tokenizer(base: Path, *folders: Path) -> None:
    """Write the base model's tokenizer into each of `folders`."""
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    for folder in folders:
        tokenizer.save_pretrained(folder)


def difference(model: Any, probes: Iterable[GoldenProbe]) -> float:
    """Mean absolute difference of `model` from the probes' log-probabilities, in nats a token: of
    their prompts' tokens, which tell adapters apart, or of their answers', whichever is larger."""
    asked, answered = list[float](), list[float]()
    for probe in probes:
        prompt, target = probe.prompt_token_ids, probe.target_token_ids
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0].float()
        said = logits.log_softmax(-1)
        asked += _differences(said, prompt[1:], probe.prompt_logprobs)
        answered += _differences(said[len(prompt) - 1 :], target, probe.logprobs)
    means = [sum(found) / len(found) for found in (asked, answered) if found]
    # What is no number is the worst of all; `max` would pass over it.
    return max(means, key=lambda mean: (math.isnan(mean), mean), default=math.inf)


def _differences(said: Any, tokens: Sequence[int], expected: Sequence[float]) -> list[float]:
    """Of each token from that in `said` (places, vocabulary) of the place before; none of what is
    not expected."""
    return [
        abs(float(said[place, token]) - value)
        for place, (token, value) in enumerate(zip(tokens, expected, strict=False))
    ]
