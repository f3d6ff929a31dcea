"""What each Ray Train worker runs: DeepSpeed around a PEFT model, one pass over the shard an epoch.

Ray has initialised torch.distributed before this is called. Every rank reports equally often.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train

from train_jobs.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from train_jobs.batches import Collator

_REPORT_EVERY = 20
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
    import deepspeed
    import torch
    from transformers import AutoTokenizer

    from cluster import processor
    from train_jobs.batches import Collator
    from train_jobs.lora import add_adapter, load_base
    from train_jobs.tracking import Tracker

    config = TrainConfig.model_validate(settings["config"])
    if not config.scaling.use_gpu:
        _without_compiled_operators()
    rows = int(settings["rows"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.base_model.path)
    wanted = processor.precision(config.base_model.dtype, gpu=config.scaling.use_gpu)
    half = wanted == "bfloat16"
    base = load_base(config.base_model, torch.bfloat16 if half else torch.float32)
    model = add_adapter(base, config.lora)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=trainable,
        config=deepspeed_config(config, bfloat16=half),
    )
    steps = max(1, rows // (world * config.micro_batch)) * config.epochs
    tracker, collator = Tracker(config, rank), Collator(tokenizer, config.max_length)
    step, started = 0, time.monotonic()
    for epoch, batches in enumerate(_epochs(config, collator, rows)):
        total, count = 0.0, 0
        for batch in batches:
            rate = learning_rate(config, step, steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            loss = engine(**{k: v.to(engine.device) for k, v in batch.items()}).loss
            engine.backward(loss)
            engine.step()
            step, total, count = step + 1, total + loss.item(), count + 1
            if step % _REPORT_EVERY == 0:
                tracker.log({"train/loss": loss.item(), "train/learning_rate": rate}, step)
        seconds = time.monotonic() - started
        metrics = {
            "epoch": epoch + 1,
            "epochs": config.epochs,
            "loss": total / max(1, count),
            "step": step,
            "rows_per_s": step * config.micro_batch * world / seconds,
            "too_long": collator.too_long // (epoch + 1),
        }
        tracker.log({f"epoch/{name}": value for name, value in metrics.items()}, step)
        _report(metrics, engine, rank, last=epoch + 1 == config.epochs)
    tracker.close()


def _without_compiled_operators() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives for CPU workers.

    It would call a C++ compiler in the middle of the run, for a minute, on machines that need not
    have one; gloo does the same exchange. The table is what DeepSpeed consults before it compiles.
    """
    from deepspeed import ops

    ops.__compatible_ops__ = {}


def _epochs(
    config: TrainConfig, collator: Collator, rows: int
) -> Iterator[Iterator[dict[str, torch.Tensor]]]:
    """One iterator of batches an epoch, each in an order of its own.

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
        yield (collator(columns(batch)) for batch in _chunks(cached, config.micro_batch))


def _chunks(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows) - size + 1, size):
        yield rows[start : start + size]


def _report(metrics: dict[str, Any], engine: Any, rank: int, *, last: bool) -> None:
    """Report on every rank; the last report of rank 0 carries the adapter."""
    if not last:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        _save_adapter(engine, Path(folder), rank)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
        ray.train.report(metrics, checkpoint=checkpoint)


def _save_adapter(engine: Any, folder: Path, rank: int) -> None:
    """Write the PEFT directory from rank 0.

    Under ZeRO 3 the parameters are scattered, and saving them without gathering writes empty
    tensors (DeepSpeed issue 7900), so every rank takes part in the gathering.
    """
    import deepspeed

    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
        if rank == 0:
            engine.module.save_pretrained(folder, safe_serialization=True)
