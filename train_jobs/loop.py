"""What each Ray Train worker runs: DeepSpeed around a PEFT model, one pass over the shard an epoch.

Ray has initialised torch.distributed before this is called. Every rank reports equally often. What
is optimised is the objective's; what watches is the hooks'; where a run resumes is the
checkpoint's.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train

from train_jobs import checkpoint
from train_jobs.checkpoint import Progress
from train_jobs.config import TrainConfig
from train_jobs.hooks import Epoch, Hooks, Step

if TYPE_CHECKING:
    import torch

    from train_jobs.objectives.base import Collator

_SHUFFLE_ROWS = 4096


def deepspeed_config(config: TrainConfig, *, bfloat16: bool) -> dict[str, Any]:
    """DeepSpeed's settings: ZeRO in bfloat16 or 32 bits, PyTorch's AdamW, nothing compiled."""
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": {"stage": config.scaling.zero_stage},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": config.learning_rate, "weight_decay": 0.0, "torch_adam": True},
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
        "wall_clock_breakdown": False,
    }


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then linear decay to a twentieth."""
    progress = (step + 1) / max(1, total)
    if progress < config.warmup_share:
        return config.learning_rate * progress / config.warmup_share
    return config.learning_rate * max(0.05, 1.0 - progress)


def train_loop(settings: dict[str, Any]) -> None:
    """Train on this rank's shard; rank 0 leaves the adapter in the last checkpoint."""
    # Only the workers need these: the controller and the driver import this module too, DeepSpeed
    # probes for an accelerator when imported, and each of them costs seconds.
    from transformers import AutoTokenizer

    from train_jobs.tracking import Tracker

    config = TrainConfig.model_validate(settings["config"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    engine = make_engine(config)
    tokenizer = AutoTokenizer.from_pretrained(config.base_model.path)
    hooks = Hooks([Tracker(config, rank)])
    try:
        run = _Run(
            config, engine, config.objective.collator(tokenizer), hooks, rank=rank, world=world
        )
        run.fit(int(settings["rows"]))
    except BaseException as error:
        hooks.on_error(error)
        raise
    finally:
        hooks.close()


def make_engine(config: TrainConfig) -> Any:
    """DeepSpeed's engine around the base model with a fresh adapter, the same on every rank."""
    import deepspeed
    import torch

    from cluster import processor
    from train_jobs.lora import add_adapter, load_base

    if not config.scaling.use_gpu:
        _without_compiled_operators()
    torch.manual_seed(config.seed)
    wanted = processor.precision(config.base_model.dtype, gpu=config.scaling.use_gpu)
    half = wanted == "bfloat16"
    base = load_base(config.base_model, torch.bfloat16 if half else torch.float32)
    model = add_adapter(base, config.lora)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
        config=deepspeed_config(config, bfloat16=half),
    )
    return engine


class _Run:
    """One worker's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Any,
        collator: Collator,
        hooks: Hooks,
        *,
        rank: int,
        world: int,
    ) -> None:
        self._config, self._engine, self._collator = config, engine, collator
        self._hooks, self._rank, self._world = hooks, rank, world

    def fit(self, rows: int) -> None:
        """Take every epoch that the last checkpoint, if there is one, has not."""
        config, progress = self._config, self._resumed()
        steps = max(1, rows // (self._world * config.micro_batch)) * config.epochs
        started, resumed = time.monotonic(), progress
        for epoch, batches in enumerate(epochs(config, self._collator, rows)):
            if epoch < progress.epoch:
                continue  # drawn all the same: the order of later epochs depends on it
            total, count, step = 0.0, 0, progress.step
            for batch in batches:
                step, count = step + 1, count + 1
                total += self._step(batch, step, steps)
            progress = Progress(epoch + 1, step)
            done = (step - resumed.step) * config.micro_batch * self._world
            finished = Epoch(
                epoch=epoch + 1,
                epochs=config.epochs,
                loss=total / max(1, count),
                step=step,
                rows_per_s=done / (time.monotonic() - started),
                too_long=self._collator.too_long // (epoch + 1 - resumed.epoch),
            )
            self._hooks.on_epoch(finished)
            self._report(finished, progress)

    def _resumed(self) -> Progress:
        kept = ray.train.get_checkpoint()
        if kept is None:
            return Progress()
        with kept.as_directory() as folder:
            return checkpoint.restore(self._engine, Path(folder), self._config.epochs)

    def _step(self, batch: dict[str, torch.Tensor], step: int, steps: int) -> float:
        rate = learning_rate(self._config, step - 1, steps)
        loss = optimise(self._config, self._engine, batch, rate)
        self._hooks.on_step(Step(step, loss, rate))
        return loss

    def _report(self, epoch: Epoch, progress: Progress) -> None:
        """Report on every rank; a checkpoint of the last epoch, and of others as configured."""
        last = epoch.epoch == epoch.epochs
        every = self._config.checkpoints.every_epochs
        if not last and (every is None or epoch.epoch % every):
            ray.train.report(asdict(epoch))
            return
        with tempfile.TemporaryDirectory() as folder:
            state = every is not None
            checkpoint.save(self._engine, Path(folder), progress, self._rank, state=state)
            kept = ray.train.Checkpoint.from_directory(folder) if state or not self._rank else None
            ray.train.report(asdict(epoch), checkpoint=kept)


def optimise(
    config: TrainConfig, engine: Any, batch: dict[str, torch.Tensor], rate: float
) -> float:
    """One optimizer step at learning rate `rate`; its loss."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    loss = config.objective.loss(engine, {k: v.to(engine.device) for k, v in batch.items()})
    engine.backward(loss)
    engine.step()
    return float(loss.item())


def _without_compiled_operators() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives for CPU workers.

    It would call a C++ compiler in the middle of the run, for a minute, on machines that need not
    have one; gloo does the same exchange. The table is what DeepSpeed consults before it compiles.
    """
    from deepspeed import ops

    ops.__compatible_ops__ = {}


def epochs(
    config: TrainConfig, collator: Collator, rows: int
) -> Iterator[Iterator[dict[str, torch.Tensor]]]:
    """One iterator of batches an epoch, each in an order of its own that the seed decides.

    A shard that fits in memory is read once: every pass of Ray Data over a small file starts
    processes that take longer than the pass itself.
    """
    from train_jobs.batches import columns

    shard = ray.train.get_dataset_shard("train")
    if rows > config.cache_rows:
        for epoch in range(config.epochs):
            batches = shard.iter_batches(
                batch_size=config.micro_batch,
                drop_last=True,
                local_shuffle_buffer_size=_SHUFFLE_ROWS,
                local_shuffle_seed=config.seed + epoch,
            )
            yield map(collator, batches)
        return
    cached = list(shard.iter_rows())
    order = random.Random(config.seed)
    for _ in range(config.epochs):
        order.shuffle(cached)
        yield (collator(columns(batch)) for batch in _chunks(list(cached), config.micro_batch))


def _chunks(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows) - size + 1, size):
        yield rows[start : start + size]
