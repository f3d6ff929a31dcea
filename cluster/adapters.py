"""The adapter manifest: what a published adapter version says of itself, and its validation.

An adapter directory comes from a training job and is untrusted until `inspect` has read it:
safetensors only, finite, not empty, the rank and base it claims.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import (
    BaseModel,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)

from cluster import storage
from cluster.errors import ArtifactError, one_line
from cluster.records.adapter import AdapterManifest

MANIFEST = "headrace.json"
WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
_ALLOWED = {MANIFEST, WEIGHTS, PEFT_CONFIG, storage.STABLE, "README.md"}
_MAX_HEADER = 16 << 20
#: Nats a token. The same weights beside cluster/models/headrace-mini, in the trainer's library and
#: in the engine's, measured at most 0.0001 in 32 bits and 0.038 in bfloat16; adapters for the same
#: task, fitted to nearly the same rows, 0.17 and more; those for others 0.2 to 3.7.
MAX_DIFFERENCE = 0.1
#: An engine answers all of a version's at once.
MAX_PROBES = 64
_DOWN, _UP = ".lora_A.", ".lora_B."
_HALVES = {_DOWN: _UP, ".lora_embedding_A": ".lora_embedding_B"}


class _Tensor(BaseModel):
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[int, int]


_HEADER: TypeAdapter[dict[str, _Tensor | dict[str, str]]] = TypeAdapter(
    dict[str, _Tensor | dict[str, str]]
)


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
        raise ArtifactError(f"{path}: {one_line(error)}") from error
    if not isinstance(peft, dict) or peft.get("peft_type") != "LORA":
        raise ArtifactError(f"{path / PEFT_CONFIG} does not describe a LoRA adapter")
    if peft.get("r") != manifest.rank or manifest.rank > max_rank:
        raise ArtifactError(
            f"{path}: rank {peft.get('r')} does not fit (manifest {manifest.rank}, "
            f"the engine takes at most {max_rank})"
        )
    # PEFT lets single layers have a rank of their own; none may be over the engine's.
    ranks = {manifest.rank} if not peft.get("rank_pattern") else set(range(1, max_rank + 1))
    _require_pairs(path, check_tensors(path / WEIGHTS, ranks))
    if not manifest.golden:
        raise ArtifactError(f"{path}: no golden probes, so a swap could not be proved")
    for probe in manifest.golden:
        whole = probe.prompt_token_ids and probe.target_token_ids
        if not whole or len(probe.target_token_ids) != len(probe.logprobs):
            raise ArtifactError(
                f"{path}: a golden probe has no prompt, answer or log-probabilities"
            )
        if len(probe.prompt_logprobs) not in (0, len(probe.prompt_token_ids) - 1):
            raise ArtifactError(
                f"{path}: a golden probe has {len(probe.prompt_logprobs)} log-probabilities for "
                f"a prompt of {len(probe.prompt_token_ids)} tokens; it takes one less than those"
            )
    return manifest


def _require_pairs(path: Path, names: set[str]) -> None:
    """Raise ArtifactError unless something is a LoRA layer, and each of them whole."""
    both = {**_HALVES, **{up: down for down, up in _HALVES.items()}}
    others = {
        name: name.replace(part, both[part]) for name in names for part in both if part in name
    }
    if not others:
        raise ArtifactError(f"{path}: no tensor of it is of a LoRA layer")
    for name, other in sorted(others.items()):
        if other not in names:
            raise ArtifactError(f"{path}: tensor {name} has no {other} beside it")


@dataclass(frozen=True)
class _Format:
    """How to read a tensor's numbers as integers, and which bits are all set where one is no
    number: the exponent's, by IEEE 754."""

    integers: str
    exponent: int


_FORMATS = {
    "F64": _Format("<u8", 0x7FF0_0000_0000_0000),
    "F32": _Format("<u4", 0x7F80_0000),
    "F16": _Format("<u2", 0x7C00),
    "BF16": _Format("<u2", 0x7F80),
}


def check_tensors(path: Path, ranks: set[int]) -> set[str]:
    """Every tensor lies inside the file, fits its shape and a rank, and holds numbers only.

    Returns their names.

    Raises:
        ArtifactError: one does not, or there is none.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ArtifactError(f"{path} is not a safetensors file")
        try:
            header = _HEADER.validate_json(handle.read(length))
        except ValidationError as error:
            raise ArtifactError(f"{path} is not a safetensors file: {one_line(error)}") from error
    tensors = {name: item for name, item in header.items() if isinstance(item, _Tensor)}
    if not tensors:
        raise ArtifactError(f"{path} holds no tensor")
    _require_apart(path, tensors)
    content = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else None
    for name, item in tensors.items():
        _require_lora(path, name)
        _check_tensor(f"{path}: tensor {name}", item, content)
        side = 0 if _DOWN in name else 1 if _UP in name else None
        if side is not None and (len(item.shape) != 2 or item.shape[side] not in ranks):
            raise ArtifactError(
                f"{path}: tensor {name} has shape {item.shape}, not the rank stated"
            )
    return set(tensors)


#: Parts of tensors' names, and PEFT's fields that make them; no engine here applies those.
_NOT_SERVED = {
    ".lora_A.bias": "lora_bias",
    ".lora_B.bias": "lora_bias",
    ".lora_magnitude_vector": "use_dora",
    ".modules_to_save.": "modules_to_save",
    ".token_adapter.": "trainable_token_indices",
    ".trainable_tokens_": "trainable_token_indices",
}


def _require_lora(path: Path, name: str) -> None:
    for part, field in _NOT_SERVED.items():
        if part in name:
            raise ArtifactError(f"{path}: tensor {name} is of {field}, which is not served")


def _require_apart(path: Path, tensors: dict[str, _Tensor]) -> None:
    """Raise ArtifactError where tensors share bytes: a few of them would be read for ever."""
    ends = 0
    for start, end in sorted(item.data_offsets for item in tensors.values()):
        if start < ends:
            raise ArtifactError(f"{path} is not a safetensors file: its tensors overlap")
        ends = end


def _check_tensor(what: str, tensor: _Tensor, content: np.ndarray[Any, Any] | None) -> None:
    start, end = tensor.data_offsets
    if content is None or not 0 <= start < end <= len(content):
        raise ArtifactError(f"{what} is empty or outside the file")
    found = _FORMATS.get(tensor.dtype)
    if found is None:
        raise ArtifactError(f"{what} is of type {tensor.dtype}; LoRA weights are floating point")
    numbers = content[start:end].view(np.uint8)
    width = np.dtype(found.integers).itemsize
    if len(numbers) != math.prod(tensor.shape) * width:
        raise ArtifactError(f"{what} does not have the size of its shape {tensor.shape}")
    # A copy of one tensor at a time: it may start anywhere in the file.
    bits = np.frombuffer(numbers.tobytes(), found.integers)
    if bool(np.any((bits & found.exponent) == found.exponent)):
        raise ArtifactError(f"{what} holds values that are not finite numbers")
