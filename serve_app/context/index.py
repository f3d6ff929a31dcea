"""A small in-memory index of embedded documents, read from a published Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import ArtifactError
from cluster.records.trace import Snippet
from cluster.types import EVERYONE


class DocumentIndex:
    """Exact cosine search; the right tool up to some ten thousand passages."""

    def __init__(self, path: Path) -> None:
        """Read the index that was published at `path`.

        Raises:
            ArtifactError: it was altered, or does not say whose its passages are.
        """
        storage.require_stable(path)
        table = pq.read_table(path / "documents.parquet")
        if "tenant" not in table.column_names:
            raise ArtifactError(f"{path} does not say whose its passages are: import them again")
        owners: list[str] = table.column("tenant").to_pylist()
        self._numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
        self._owners = np.array([self._numbers[owner] for owner in owners], dtype=np.int64)
        self._titles: list[str] = table.column("title").to_pylist()
        self._texts: list[str] = table.column("text").to_pylist()
        vectors = table.column("embedding").to_pylist()
        self._vectors = np.array(vectors, dtype=np.float32).reshape(len(vectors), -1)

    def __len__(self) -> int:
        return len(self._texts)

    def search(
        self, queries: NDArray[np.float32], tenants: Sequence[str], top_k: int, floor: float
    ) -> list[list[Snippet]]:
        """For each query, shape (queries, dimensions), the best passages at or above `floor`, best
        first: of its tenant's, and of those that are everyone's."""
        scores = queries @ self._vectors.T
        # Unknown tenants have a number that no passage has.
        asking = np.array([self._numbers.get(tenant, -1) for tenant in tenants], dtype=np.int64)
        shared = self._owners == self._numbers.get(EVERYONE, -1)
        scores[~(shared | (asking[:, None] == self._owners))] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :top_k]
        return [
            [
                Snippet(self._titles[i], self._texts[i], round(float(row[i]), 4))
                for i in chosen
                if row[i] >= floor
            ]
            for row, chosen in zip(scores, best, strict=True)
        ]
