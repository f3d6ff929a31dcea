"""Training rows to padded token batches. The prompt carries no loss, the completion all of it."""

from __future__ import annotations

import json
from typing import Any

import torch

IGNORE = -100


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's token ids, exactly as the engine makes them."""
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    return ids


def completion_ids(tokenizer: Any, text: str) -> list[int]:
    """The completion's token ids and the end-of-turn token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as the columns a batch has."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class PromptCompletions:
    """A collator of prompts and completions, to tensors of shape (rows, longest row).

    Workers tokenise as they read: a few milliseconds a batch, and no pipeline stage of its own. A
    row longer than `max_length` keeps its place, so that every rank sees equally many batches, but
    is cut and carries no loss; `too_long` counts them.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self.too_long = 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` of one batch of `prompt`, `completion`."""
        rows, starts = [], []
        for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True):
            head = chat_ids(self._tokenizer, json.loads(str(prompt)))
            ids = head + completion_ids(self._tokenizer, str(completion))
            fits = len(ids) <= self._max_length
            self.too_long += not fits
            rows.append(torch.tensor(ids[: self._max_length]))
            starts.append(len(head) if fits else self._max_length)
        padding = self._tokenizer.pad_token_id
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        labels, mask = torch.full_like(padded, IGNORE), torch.zeros_like(padded)
        for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
            mask[index, : len(row)] = 1
            labels[index, start : len(row)] = row[start:]
        return {"input_ids": padded, "attention_mask": mask, "labels": labels}
