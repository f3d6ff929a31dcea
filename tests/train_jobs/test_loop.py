"""The training loop's parts: objective, hooks, and a run that resumes as if it had not stopped."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import MODEL, REPOSITORY
from train_jobs.config import TrainConfig
from train_jobs.hooks import Epoch, Hooks, Step
from train_jobs.objectives.supervised import Supervised

SETTINGS: dict[str, Any] = {
    "adapter": "a",
    "tenant": "t",
    "version": 1,
    "run_id": "r",
    "base_model": {"path": str(MODEL), "dtype": "float32"},
    "dataset": "d",
    "heldout": "h",
    "out": "o",
    "storage": "s",
    "lora": {"r": 4, "alpha": 8},
    "micro_batch": 2,
}

#: Real DeepSpeed wants a process of its own: it takes part in a process group.
_SCRIPT = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from transformers import AutoTokenizer
from train_jobs import checkpoint
from train_jobs.batches import columns
from train_jobs.checkpoint import Progress
from train_jobs.config import TrainConfig
from train_jobs.loop import make_engine, optimise

config, folder = TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
collate = config.objective.collator(AutoTokenizer.from_pretrained(config.base_model.path))
rows = [{"prompt": json.dumps([{"role": "user", "content": f"word {n}"}]), "completion": f"{n} ok"}
        for n in range(8)]
batches = [collate(columns(rows[n:n + 2])) for n in range(0, 8, 2)]

def take(engine, some):
    return [optimise(config, engine, batch, 1e-2) for batch in some]

whole = make_engine(config)
losses = take(whole, batches)
first = make_engine(config)
before = take(first, batches[:2])
checkpoint.save(first, folder / "kept", Progress(1, 2), 0, state=True)
second = make_engine(config)
progress = checkpoint.restore(second, folder / "kept", 2)
after = take(second, batches[2:])
pairs = zip(whole.module.parameters(), second.module.parameters())
other = max(float((a - b).abs().max()) for a, b in pairs)
files = sorted(path.name for path in (folder / "kept" / checkpoint.ADAPTER).iterdir())
print("FOUND", json.dumps([losses, before + after, other, [progress.epoch, progress.step], files]))
"""


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(SETTINGS)
    environment = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [
            *("env", *(f"{name}={value}" for name, value in environment.items())),
            *(sys.executable, "-c", _SCRIPT, config.model_dump_json(), str(tmp_path)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [one for one in done.stdout.splitlines() if one.startswith("FOUND ")]
    whole, resumed, difference, progress, files = json.loads(line.removeprefix("FOUND "))
    assert resumed == pytest.approx(whole, abs=1e-6)
    assert whole[-1] < whole[0], "it learns"
    assert difference < 1e-6
    assert progress == [1, 2]
    assert "adapter_model.safetensors" in files


def test_the_objective_reads_its_columns_and_takes_loss_on_the_completion_only() -> None:
    objective = Supervised(max_length=64)
    collate = objective.collator(AutoTokenizer.from_pretrained(MODEL))
    row = {"prompt": '[{"role": "user", "content": "hi"}]', "completion": "yes", "source": "x"}
    batch = collate({name: [row[name]] for name in objective.columns})

    class Model:
        def __call__(self, **given: torch.Tensor) -> Any:
            assert given.keys() == {"input_ids", "attention_mask", "labels"}
            return type("Output", (), {"loss": given["labels"].float().mean()})

    assert objective.loss(Model(), batch).shape == ()
    assert objective.recipe()["objective"] == "supervised"


def test_hooks_are_called_in_order() -> None:
    called: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step(self, step: Step) -> None:
            called.append(f"{self.name} step {step.number}")

        def on_epoch(self, epoch: Epoch) -> None:
            called.append(f"{self.name} epoch {epoch.epoch}")

        def on_error(self, error: BaseException) -> None:
            called.append(f"{self.name} {error}")

        def close(self) -> None:
            called.append(f"{self.name} closed")

    hooks = Hooks([Named("a"), Named("b")])
    hooks.on_step(Step(1, 0.5, 0.1))
    hooks.on_epoch(Epoch(1, 2, 0.5, 4, 10.0, 0))
    hooks.on_error(ValueError("broken"))
    hooks.close()
    pairs = list(zip(called[::2], called[1::2], strict=True))
    assert pairs == [
        (f"a {what}", f"b {what}") for what in ("step 1", "epoch 1", "broken", "closed")
    ]
