"""Fits the linear map that turns MiniLM's fourth layer into vectors fit for routing.

Ridge regression (Hoerl and Kennard 1970) from the pooled fourth layer to the model's own sentence
embeddings, on dialogue text. Reads no label.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cluster.embedding import ROUTING_LAYERS, MiniLM
from train_jobs.base_model.corpus import multidogo_turns, taskmaster_dialogues

_TEXTS = 12_000
_RIDGE = 0.1


def fit(data: Path, out: Path, seed: int) -> dict[str, float]:
    """Write the map to `out` and return how well it does on texts it was not fitted on."""
    texts = _texts(data, seed)
    below, whole = MiniLM(layers=ROUTING_LAYERS)(texts), MiniLM()(texts)
    held = len(texts) // 10
    weight, bias = ridge(below[held:], whole[held:])
    mapped = below[:held] @ weight + bias
    mapped /= np.linalg.norm(mapped, axis=1, keepdims=True)
    figures = {
        "texts": len(texts) - held,
        "ridge": _RIDGE,
        "held_out_cosine": round(float((mapped * whole[:held]).sum(axis=1).mean()), 4),
    }
    out.mkdir(parents=True, exist_ok=True)
    arrays = {"weight": weight.astype(np.float16), "bias": bias.astype(np.float16)}
    save_file(arrays, out / "map.safetensors")
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def ridge(
    inputs: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    wanted: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> tuple[
    np.ndarray[tuple[int, int], np.dtype[np.float64]],
    np.ndarray[tuple[int], np.dtype[np.float64]],
]:
    """Weight (width, width) and bias (width,) of `wanted` by `inputs`, both (texts, width)."""
    centre, target = inputs.mean(axis=0), wanted.mean(axis=0)
    shifted = (inputs - centre).astype(np.float64)
    gram = shifted.T @ shifted + _RIDGE * np.eye(inputs.shape[1])
    weight = np.linalg.solve(gram, shifted.T @ (wanted - target))
    return weight, target - centre @ weight


def _texts(data: Path, seed: int) -> list[str]:
    turns = [text for conversation in multidogo_turns(data) for text in conversation]
    spoken = [turn.text for document in taskmaster_dialogues(data) for turn in document]
    draw = random.Random(seed)
    half = _TEXTS // 2
    chosen = [
        *draw.sample(sorted(set(turns)), half),
        *draw.sample(sorted({text for text in spoken if 15 < len(text) < 200}), half),
    ]
    draw.shuffle(chosen)
    return chosen
