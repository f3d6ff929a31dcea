"""Pre-trains the small base model on two cores, within a wall-clock budget.

Owns the architecture and the optimiser schedule. The run is bounded by minutes, not steps: the
learning rate follows elapsed time, so that a slower machine still ends on a cooled-down model.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from train_jobs.base_model.corpus import stream
from train_jobs.base_model.documents import BOS, END, ROLES, Document, render
from train_jobs.base_model.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

_WARMUP = 0.02
_COOLDOWN = 0.35
_VALIDATION_SEED = 10_007
_TOKENIZER_DOCUMENTS = 60_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train and for how long."""

    data: Path
    out: Path
    minutes: float = 40.0
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    intermediate: int = 704
    vocab: int = 4096
    block: int = 384
    batch: int = 24
    learning_rate: float = 3e-3
    seed: int = 0


def build_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings and room for 1,024 positions."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=plan.vocab,
        hidden_size=plan.hidden,
        intermediate_size=plan.intermediate,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Packer:
    """Packs weighted documents into blocks of token ids and loss weights."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, block: int) -> None:
        self._tokenizer = tokenizer
        self._block = block
        self._bos = tokenizer.convert_tokens_to_ids(BOS)
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._roles = {role: tokenizer.convert_tokens_to_ids(t) for role, t in ROLES.items()}

    def encode(self, document: Document) -> tuple[list[int], list[float]]:
        """Token ids and per-token loss weights of one document."""
        ids, weights = [self._bos], [0.0]
        texts = [turn.text.strip() for turn in document]
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        for turn, tokens in zip(document, encoded, strict=True):
            ids += [self._roles[turn.role], *tokens, self._end]
            weights += [0.1, *([turn.weight] * len(tokens)), turn.weight]
        return ids, weights

    def batches(
        self, documents: Iterator[Document], size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless `(ids, weights)` of shape `(size, block)`; a document never spans two blocks."""
        ids: list[list[int]] = []
        weights: list[list[float]] = []
        row: list[int] = []
        row_weights: list[float] = []
        for document in documents:
            tokens, token_weights = self.encode(document)
            tokens, token_weights = tokens[: self._block], token_weights[: self._block]
            if len(row) + len(tokens) > self._block:
                gap = self._block - len(row)
                ids.append(row + [self._end] * gap)
                weights.append(row_weights + [0.0] * gap)
                row, row_weights = [], []
            row, row_weights = row + tokens, row_weights + token_weights
            if len(ids) == size:
                yield torch.tensor(ids), torch.tensor(weights)
                ids, weights = [], []


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted next-token cross entropy, in nats a weighted token."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    flat = weights[:, 1:].flatten()
    return (losses * flat).sum() / flat.sum()


def _optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest (Jordan et al. 2024; Liu et al. 2025)."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    matrices = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in matrices]
    return [
        torch.optim.Muon(
            hidden, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(progress: float) -> float:
    """Warm up, hold, then cool down linearly; `progress` runs from 0 to 1."""
    return min(1.0, progress / _WARMUP + 0.01, max(0.0, (1.0 - progress) / _COOLDOWN))


def pretrain(plan: Plan) -> dict[str, float]:
    """Train tokenizer and model, save both as a Hugging Face directory, return the figures."""
    documents = stream(plan.data, plan.seed)
    tokenizer = train_tokenizer(
        (render(next(documents)) for _ in range(_TOKENIZER_DOCUMENTS)), plan.vocab, 1024
    )
    model = build_model(plan, tokenizer)
    packer = Packer(tokenizer, plan.block)
    held_out = next(packer.batches(stream(plan.data, _VALIDATION_SEED), 32))
    optimizers = _optimizers(model, plan.learning_rate)
    weighted_loss = torch.compile(_loss)
    logger.info("parameters: %d", sum(p.numel() for p in model.parameters()))
    started, tokens, step = time.monotonic(), 0, 0
    for ids, weights in packer.batches(documents, plan.batch):
        progress = (time.monotonic() - started) / (plan.minutes * 60)
        if progress >= 1.0:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * _rate(progress)
        loss = weighted_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens, step = tokens + ids.numel(), step + 1
        if step % 50 == 0:
            speed = tokens / (time.monotonic() - started)
            logger.info(
                "step %d  %3.0f%%  loss %.3f  %.0f tok/s", step, 100 * progress, loss.item(), speed
            )
    with torch.no_grad():
        validation = _loss(model, *held_out).item()
    _save(plan, model, tokenizer)
    figures = {"steps": step, "tokens": tokens, "validation_loss": validation}
    plan.out.joinpath("training.json").write_text(
        json.dumps({**figures, "perplexity": math.exp(validation), "plan": _public(plan)}, indent=2)
        + "\n"
    )
    return figures


def _save(plan: Plan, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    plan.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(plan.out, safe_serialization=True)
    tokenizer.save_pretrained(plan.out)


def _public(plan: Plan) -> dict[str, object]:
    """The plan without the paths of the machine it ran on."""
    return {key: value for key, value in asdict(plan).items() if key not in ("data", "out")}
