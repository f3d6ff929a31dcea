"""Configuration of a training run. Imports neither Ray nor PyTorch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cluster.config import BaseModelRef, ConfigModel
from cluster.records.adapter import MAX_PROBES
from cluster.types import checked_name
from train_jobs.objectives import Objective
from train_jobs.objectives.supervised import Supervised


class LoraConfig(ConfigModel):
    """The adapter's shape."""

    r: int = Field(default=32, ge=1, le=512)
    alpha: int = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class Scaling(ConfigModel):
    """Workers and what each gets."""

    workers: int = Field(default=2, ge=1)
    cpus_per_worker: float = 1.0
    use_gpu: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""


class Tracking(ConfigModel):
    """Weights & Biases."""

    project: str = "headrace"
    mode: Literal["offline", "online", "disabled"] = "offline"


class Checkpoints(ConfigModel):
    """How a run survives the loss of a worker."""

    every_epochs: int | None = Field(default=None, ge=1)
    """Epochs between two checkpoints to resume from; None keeps the finished adapter only, as is
    sensible where a run takes minutes."""
    keep: int = Field(default=2, ge=1)
    """The newest that are kept."""
    max_failures: int = Field(default=0, ge=0)
    """Times that the workers are started again after a failure; from the beginning where there is
    no checkpoint."""


class EvalConfig(ConfigModel):
    """Held-out evaluation after training."""

    batch_size: int = 128
    max_new_tokens: int = 72
    golden_probes: int = Field(default=8, ge=1, le=MAX_PROBES)
    """Prompts whose log-probabilities prove a swap."""


class TrainConfig(ConfigModel):
    """One run: a dataset version and a base model become an adapter version."""

    adapter: str
    tenant: str
    """Whose the adapter is."""
    version: int
    run_id: str
    """Names the run's folder below `storage`: one run resumes there, and no other may use it."""
    base_model: BaseModelRef
    dataset: str
    """Published dataset directory."""
    heldout: str
    """JSON lines of held-out turns; never trained on."""
    out: str
    """Folder under which `NAME/VERSION` is published."""
    storage: str
    """Folder of run state, checkpoints and W&B files."""
    previous: str | None = None
    """Published directory of the live version, evaluated on the same rows."""
    previous_label: str | None = None
    objective: Objective = Supervised()
    """What is optimised."""
    lora: LoraConfig = LoraConfig()
    scaling: Scaling = Scaling()
    epochs: int = Field(default=8, ge=1)
    micro_batch: int = Field(default=16, ge=1)
    """Rows a worker and step."""
    learning_rate: float = 2e-3
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    cache_rows: int = 200_000
    """Datasets up to this size are read once into the workers' memory; larger ones stream."""
    seed: int = 0
    evaluation: EvalConfig = EvalConfig()
    tracking: Tracking = Tracking()
    checkpoints: Checkpoints = Checkpoints()

    _names = field_validator("adapter", "tenant")(checked_name)

    @property
    def recipe(self) -> dict[str, str | int | float]:
        """What decides how the adapter is fitted, as its model card tells it."""
        modules = self.lora.target_modules
        return {
            **self.objective.recipe(),
            "LoRA alpha": self.lora.alpha,
            "LoRA dropout": self.lora.dropout,
            "target modules": modules if isinstance(modules, str) else ", ".join(modules),
            "epochs": self.epochs,
            "rows a step": self.micro_batch * self.scaling.workers,
            "learning rate": self.learning_rate,
            "share of steps that warm up": self.warmup_share,
            "workers": self.scaling.workers,
            "DeepSpeed ZeRO stage": self.scaling.zero_stage,
            "seed": self.seed,
        }


class AdoptConfig(ConfigModel):
    """An adapter from elsewhere becomes a candidate: a bundle of Headrace's, or a PEFT folder."""

    source: str
    adapter: str
    """The name it gets here."""
    tenant: str
    """Whose it is from now on."""
    version: int
    run_id: str
    base_model: BaseModelRef
    trusted: tuple[str, ...] = ()
    """Fingerprints of the keys that a bundle may be signed with."""
    heldout: str | None = None
    """JSON lines of held-out turns to evaluate it on; a bundle may go by its own evaluation."""
    out: str
    """Folder under which `NAME/VERSION` is published."""
    storage: str
    """Folder of run state."""
    previous: str | None = None
    """Published directory of the live version, evaluated on the same rows."""
    previous_label: str | None = None
    max_rank: int = Field(default=512, ge=1)
    max_bytes: int = Field(default=8 << 30, ge=1)
    """Of its weights: nothing larger is read."""
    evaluation: EvalConfig = EvalConfig()

    _names = field_validator("adapter", "tenant")(checked_name)
