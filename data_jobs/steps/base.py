"""The contract of a data step: rows in, rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ray.data


class DataStep(Protocol):
    """Changes or filters rows. What is left out gets a `fault`, so that it is counted."""

    def apply(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """The rows after this step; deterministic in the rows and the step's configuration."""
        ...
