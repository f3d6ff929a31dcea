"""Checkpoints of a run: the adapter to publish, and the state to resume from.

Each is one folder that all ranks fill: rank 0 the adapter in PEFT's format and the progress,
DeepSpeed the optimizer's shards of each rank. Ray Train keeps it and hands it back after a failure.
DeepSpeed's files are pickles: they are only ever read from the run's own storage.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROGRESS = "progress.json"
ADAPTER = "adapter"
_STATE = "state"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Optimizer steps that are done."""


def save(engine: Any, folder: Path, progress: Progress, rank: int, *, state: bool) -> None:
    """Write this rank's part; every rank has to take part, equally often.

    Without `state` only a run that has taken all its epochs resumes from it.
    """
    save_adapter(engine, folder / ADAPTER, rank)
    if state:
        # The frozen base is on disk already; only what is trained is kept.
        engine.save_checkpoint(str(folder), tag=_STATE, exclude_frozen_parameters=True)
    if rank == 0:
        (folder / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")


def restore(engine: Any, folder: Path, epochs: int) -> Progress:
    """Bring weights, optimizer and progress back to what `save` wrote, on this rank. Where all
    `epochs` are done there is nothing left to train, and only the progress is read.

    Raises:
        ValueError: the checkpoint has no state to resume from.
    """
    progress = Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    if progress.epoch >= epochs:
        return progress
    if not (folder / _STATE).is_dir():
        raise ValueError(f"{folder} holds no state to resume from")
    engine.load_checkpoint(str(folder), tag=_STATE, load_module_strict=False)
    return progress


def save_adapter(engine: Any, folder: Path, rank: int) -> None:
    """Write the PEFT directory from rank 0.

    Under ZeRO 3 the parameters are scattered, and saving them without gathering writes empty
    tensors (DeepSpeed issue 7900), so every rank takes part in the gathering.
    """
    import deepspeed

    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
        if rank == 0:
            engine.module.save_pretrained(folder, safe_serialization=True)
