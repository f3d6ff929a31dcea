"""The contract of a data step: rows in, rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ray.data


class DataStep(Protocol):
    """Changes rows, adds rows, or gives a row that is to be left out a `fault`. The pipeline takes
    rows with a fault out after each step, and counts and names them in the manifest."""

    def apply(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """The rows after this step, none fewer; deterministic in the rows and the configuration."""
        ...
