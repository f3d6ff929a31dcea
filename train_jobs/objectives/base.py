"""The contract of an objective: which columns it reads, how rows become tensors, and the loss.

The training loop knows nothing else of what is fitted. Objectives are configuration too: pydantic
models with a `type`, so that a run's whole recipe is one document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Collator(Protocol):
    """Rows of a dataset version to one batch of tensors, each of shape (rows, ...)."""

    too_long: int
    """Rows so far that were cut and carry no loss."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a batch, given by column."""
        ...


class TrainingObjective(Protocol):
    """What a run optimises."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The dataset's columns that it reads."""
        ...

    def collator(self, tokenizer: Any) -> Collator:
        """Makes a worker's collator."""
        ...

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of a batch, a scalar that gradients flow from."""
        ...

    def recipe(self) -> dict[str, str | int | float]:
        """What of it decides how an adapter is fitted, for the model card."""
        ...
