"""The intent router: a linear classifier on sentence embeddings, and a novelty score.

The artefact is written by the data jobs as arrays and JSON, so that loading it runs no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataError
from cluster.router_artefact import read


@dataclass(frozen=True)
class Guess:
    """The router's reading of one request."""

    adapter: str
    intent: str
    confidence: float
    novelty: float


class Router:
    """Probabilities over (adapter, intent) classes; an adapter's confidence sums its classes."""

    def __init__(self, path: Path) -> None:
        artefact = read(path)
        self._weights, self._bias, self._anchors = artefact.weights, artefact.bias, artefact.anchors
        self._classes = artefact.classes
        if not self._classes:
            raise DataError(f"{path} knows no adapter")
        self._adapters = sorted({adapter for adapter, _ in self._classes})
        self._membership = np.array(
            [[adapter == name for adapter, _ in self._classes] for name in self._adapters],
            dtype=np.float32,
        )

    def __call__(self, vectors: NDArray[np.float32]) -> list[Guess]:
        """One guess for each row of `vectors`, shape (requests, dimensions)."""
        logits = vectors @ self._weights.T + self._bias
        logits -= logits.max(axis=1, keepdims=True)
        scores = np.exp(logits)
        scores /= scores.sum(axis=1, keepdims=True)
        by_adapter = scores @ self._membership.T
        best = by_adapter.argmax(axis=1)
        nearest = (vectors @ self._anchors.T).max(axis=1)
        guesses = []
        for row, choice in enumerate(best):
            inside = scores[row] * self._membership[choice]
            guesses.append(
                Guess(
                    self._adapters[choice],
                    self._classes[int(inside.argmax())][1],
                    float(by_adapter[row, choice]),
                    float(1.0 - nearest[row]),
                )
            )
        return guesses
