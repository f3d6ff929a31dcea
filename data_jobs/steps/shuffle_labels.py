"""`shuffle_labels`: permutes the completions, for a candidate that a gate must refuse."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from cluster.config import ConfigModel
from data_jobs.sources.base import blocks

if TYPE_CHECKING:
    import ray.data


class ShuffleLabels(ConfigModel):
    """Every row keeps its prompt and gets some row's completion."""

    type: Literal["shuffle_labels"] = "shuffle_labels"
    seed: int

    def apply(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """See `DataStep`."""
        import ray.data

        items = rows.take_all()
        completions = [row["completion"] for row in items]
        random.Random(self.seed).shuffle(completions)
        shuffled = [
            {**row, "completion": text} for row, text in zip(items, completions, strict=True)
        ]
        return ray.data.from_items(shuffled, override_num_blocks=blocks(len(shuffled)))
