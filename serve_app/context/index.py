"""A small in-memory index of embedded documents, read from a published Parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from serve_app.protocol import Snippet


class DocumentIndex:
    """Exact cosine search; the right tool up to some ten thousand passages."""

    def __init__(self, path: Path) -> None:
        storage.require_stable(path)
        table = pq.read_table(path / "documents.parquet")
        self._titles: list[str] = table.column("title").to_pylist()
        self._texts: list[str] = table.column("text").to_pylist()
        vectors = table.column("embedding").to_pylist()
        self._vectors = np.array(vectors, dtype=np.float32).reshape(len(vectors), -1)

    def __len__(self) -> int:
        return len(self._texts)

    def search(self, queries: NDArray[np.float32], top_k: int, floor: float) -> list[list[Snippet]]:
        """For each query, the best passages at or above `floor`, best first."""
        scores = queries @ self._vectors.T
        best = np.argsort(-scores, axis=1)[:, :top_k]
        return [
            [
                Snippet(self._titles[i], self._texts[i], round(float(row[i]), 4))
                for i in chosen
                if row[i] >= floor
            ]
            for row, chosen in zip(scores, best, strict=True)
        ]
