"""Starts the Ray Train workers on a dataset version and returns the finished adapter's folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from cluster.dataset import ROWS, read_manifest
from cluster.errors import DataError, HeadraceError
from train_jobs.checkpoint import ADAPTER
from train_jobs.config import TrainConfig
from train_jobs.loop import train_loop

logger = logging.getLogger(__name__)


class _Progress(ray.train.UserCallback):
    """One log line an epoch, from the controller."""

    def after_report(
        self, run_context: object, metrics: list[dict[str, float]], checkpoint: object
    ) -> None:
        first = metrics[0]
        logger.info(
            "epoch %d/%d loss %.4f at %.0f rows/s",
            first["epoch"],
            first["epochs"],
            first["loss"],
            first["rows_per_s"],
        )


@dataclass(frozen=True)
class Fitted:
    """A finished training."""

    adapter: Path
    rows: int
    too_long: int
    loss: float


def fit(config: TrainConfig) -> Fitted:
    """Train and return where the adapter is.

    Raises:
        DataError: the dataset is too small for the workers.
    """
    rows = read_manifest(Path(config.dataset)).rows
    if rows < config.scaling.workers * config.micro_batch:
        raise DataError(
            f"{rows} rows are too few for {config.scaling.workers} workers of "
            f"{config.micro_batch} rows: lower micro_batch or label more"
        )
    source = ray.data.read_parquet(
        str(Path(config.dataset) / ROWS),
        columns=list(config.objective.columns),
        # A small dataset is not worth a process for each of its files.
        override_num_blocks=config.scaling.workers if rows <= config.cache_rows else None,
    )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"config": config.model_dump(mode="json"), "rows": rows},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.workers,
            use_gpu=config.scaling.use_gpu,
            resources_per_worker=None
            if config.scaling.use_gpu
            else {"CPU": config.scaling.cpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=config.run_id,
            storage_path=config.storage,
            callbacks=[_Progress()],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.checkpoints.keep),
            failure_config=ray.train.FailureConfig(max_failures=config.checkpoints.max_failures),
        ),
        datasets={"train": source},
    )
    result = trainer.fit()
    if result.checkpoint is None or result.metrics is None:
        raise HeadraceError(f"run {config.run_id} ended without an adapter: {result.error}")
    return Fitted(
        Path(result.checkpoint.path) / ADAPTER,
        rows,
        int(result.metrics["too_long"]) * config.scaling.workers,
        float(result.metrics["loss"]),
    )
