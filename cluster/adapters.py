"""The adapter manifest: what a published adapter version says of itself, and its validation.

An adapter directory comes from a training job and is untrusted until `inspect` has read it:
safetensors only, finite, not empty, the rank and base it claims.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster import storage
from cluster.errors import ArtifactError
from cluster.types import AdapterVersion

MANIFEST = "headrace.json"
WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
_ALLOWED = {MANIFEST, WEIGHTS, PEFT_CONFIG, storage.STABLE, "README.md"}
_MAX_HEADER = 16 << 20


class GoldenProbe(BaseModel):
    """A prompt, its continuation and the trainer's log-probability of each token of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt_token_ids: tuple[int, ...]
    target_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Evaluation(BaseModel):
    """Held-out accuracy, all measured on the same rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    heldout_rows: int
    accuracy: float
    """Share of rows whose intent is right."""
    slot_f1: float
    unseen_rows: int
    """Rows whose text is in none of the training rows."""
    unseen_accuracy: float
    base_accuracy: float
    """The same of the base model without an adapter."""
    previous: str | None = None
    previous_accuracy: float | None = None
    wins: int = 0
    """Rows right here and wrong with `previous`."""
    losses: int = 0
    """Rows wrong here and right with `previous`."""


class AdapterManifest(BaseModel):
    """The lineage, the proof material and the evaluation of one version."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    version: int
    base_model: str
    base_digest: str
    rank: int
    dataset: str
    dataset_digest: str
    run_id: str
    seconds: float
    golden: tuple[GoldenProbe, ...]
    evaluation: Evaluation

    @property
    def id(self) -> AdapterVersion:
        """The version this manifest describes."""
        return AdapterVersion(self.name, self.version)


def inspect(path: Path, *, max_rank: int) -> AdapterManifest:
    """Read and check a published adapter directory without loading a tensor library.

    Raises:
        ArtifactError: anything in it is not what it should be.
    """
    storage.require_stable(path)
    names = {entry.name for entry in path.iterdir()}
    if extra := names - _ALLOWED:
        raise ArtifactError(f"{path} holds files that do not belong there: {sorted(extra)}")
    try:
        manifest = AdapterManifest.model_validate(storage.read_json(path / MANIFEST))
        peft = storage.read_json(path / PEFT_CONFIG, limit=1 << 20)
    except (ValueError, ValidationError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    if not isinstance(peft, dict) or peft.get("peft_type") != "LORA":
        raise ArtifactError(f"{path / PEFT_CONFIG} does not describe a LoRA adapter")
    if peft.get("r") != manifest.rank or manifest.rank > max_rank:
        raise ArtifactError(
            f"{path}: rank {peft.get('r')} does not fit (manifest {manifest.rank}, "
            f"the engine takes at most {max_rank})"
        )
    _check_tensors(path / WEIGHTS)
    if not manifest.golden:
        raise ArtifactError(f"{path}: no golden probes, so a swap could not be proved")
    return manifest


def _check_tensors(path: Path) -> None:
    """The safetensors header names tensors that are all inside the file and none empty."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ArtifactError(f"{path} is not a safetensors file")
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise ArtifactError(f"{path} is not a safetensors file: {error}") from error
    tensors = {name: item for name, item in header.items() if name != "__metadata__"}
    if not tensors:
        raise ArtifactError(f"{path} holds no tensor")
    for name, item in tensors.items():
        start, end = item["data_offsets"]
        if not 0 <= start < end <= size - 8 - length:
            raise ArtifactError(f"{path}: tensor {name} is empty or outside the file")
