"""`supervised`: next-token cross-entropy on the completion, given the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cluster.config import ConfigModel

if TYPE_CHECKING:
    import torch

    from train_jobs.batches import PromptCompletions


class Supervised(ConfigModel):
    """Fits rows of a prompt and a completion; the prompt carries no loss."""

    type: Literal["supervised"] = "supervised"
    max_length: int = Field(default=256, ge=1)
    """Tokens. Longer rows are left out, and counted."""

    @property
    def columns(self) -> tuple[str, ...]:
        """See `TrainingObjective`."""
        return ("prompt", "completion")

    def collator(self, tokenizer: Any) -> PromptCompletions:
        """See `TrainingObjective`."""
        from train_jobs.batches import PromptCompletions

        return PromptCompletions(tokenizer, self.max_length)

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `TrainingObjective`; transformers' own causal loss."""
        loss: torch.Tensor = model(**batch).loss
        return loss

    def recipe(self) -> dict[str, str | int | float]:
        """See `TrainingObjective`."""
        return {"objective": self.type, "longest row in tokens": self.max_length}
