"""Experiment tracking with Weights & Biases, from rank 0 only, offline by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train_jobs.config import TrainConfig


class Tracker:
    """Logs the run's parameters and metrics; the other ranks log nothing."""

    def __init__(self, config: TrainConfig, rank: int) -> None:
        self._run: Any = None
        if rank != 0 or config.tracking.mode == "disabled":
            return
        import wandb

        folder = Path(config.storage)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.tracking.project,
            name=config.run_id,
            id=config.run_id,
            mode=config.tracking.mode,
            dir=str(folder),
            config=config.model_dump(mode="json"),
        )

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Record `metrics` at `step`."""
        if self._run is not None:
            self._run.log(metrics, step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
