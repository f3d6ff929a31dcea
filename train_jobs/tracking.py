"""Experiment tracking with Weights & Biases, from rank 0 only, offline by default."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from train_jobs.config import TrainConfig
from train_jobs.hooks import Epoch, Step

#: Steps between two points of the loss curve.
_EVERY = 20


class Tracker:
    """A hook that logs the run's parameters and metrics; on other ranks it logs nothing."""

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
            # An attempt after a failure continues the curve; offline, W&B resumes nothing.
            resume="allow" if config.tracking.mode == "online" else None,
            dir=str(folder),
            config=config.model_dump(mode="json"),
        )

    def on_step(self, step: Step) -> None:
        """Log every twentieth step."""
        if step.number % _EVERY == 0:
            self._log({"train/loss": step.loss, "train/learning_rate": step.learning_rate}, step)

    def on_epoch(self, epoch: Epoch) -> None:
        """Log the epoch's figures."""
        figures = {f"epoch/{name}": value for name, value in asdict(epoch).items()}
        if self._run is not None:
            self._run.log(figures, step=epoch.step)

    def on_error(self, error: BaseException) -> None:
        """Say why the run failed."""
        if self._run is not None:
            self._run.summary["error"] = f"{type(error).__name__}: {error}"[:500]

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()

    def _log(self, figures: dict[str, float], step: Step) -> None:
        if self._run is not None:
            self._run.log(figures, step=step.number)
