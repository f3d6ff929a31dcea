"""A PEFT folder from elsewhere: its configuration, by the fields that change what weights mean.

Owns what of PEFT's configuration may be served, and the copy that says the same without the rest.
Every field that is not known to be understood or without effect is refused by its name: an engine
overlooks what it does not know, and would serve another model than PEFT reads.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from cluster import storage
from cluster.adapters import PEFT_CONFIG, WEIGHTS, check_tensors
from cluster.config import BaseModelRef
from cluster.errors import ArtifactError, one_line, problems
from cluster.records.adapter import GoldenProbe

_MAX_CONFIG = 1 << 20
#: Initialisations that leave the base model as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change
#: its weights, and an adapter trained beside changed weights means nothing beside others.
_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
#: Fields of PEFT's configuration that count only while it trains, or say where it came from.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
#: How PEFT's names of tensors begin, and what it calls every linear layer.
_PREFIX = "base_model.model."
_EMBEDDINGS = (
    *("lm_head.base_layer.weight", "embed_tokens.base_layer.weight"),
    *("lm_head.weight", "embed_tokens.weight"),
)
_ALL = "all-linear"
_PATTERN_S = 5.0
#: What PEFT raises at a folder it cannot read: it has no type for that.
_OF_PEFT = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)
#: Nats a token that two readings of the same weights in 32 bits may be apart.
_MAX_READING = 0.001


class PeftConfig(BaseModel):
    """The fields of a LoRA's configuration that are understood here."""

    model_config = ConfigDict(extra="ignore")
    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = "CAUSAL_LM"
    r: StrictInt = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    target_modules: list[str] | str
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = Field(default=None, max_length=0)
    alpha_pattern: dict[str, float] | None = Field(default=None, max_length=0)
    bias: Literal["none"] = "none"
    use_dora: bool | None = False
    modules_to_save: list[str] | None = Field(default=None, max_length=0)
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str = True
    base_model_name_or_path: str | None = None


@dataclass(frozen=True)
class Source:
    """A folder that was copied and checked."""

    given: Path
    """What was given: the configuration as it stands, and the weights."""
    config: PeftConfig


def copied(source: Path, folder: Path, *, max_rank: int, max_bytes: int) -> Source:
    """Copy the two files of `source` that count into `folder/given`, checked; read nothing else.

    Raises:
        ArtifactError: they are missing, too large, or not to be served; it names the field.
    """
    files = {name: _file(source, name) for name in (WEIGHTS, PEFT_CONFIG)}
    config = _checked_config(files[PEFT_CONFIG], source / PEFT_CONFIG, max_rank)
    if (size := files[WEIGHTS].stat().st_size) > max_bytes:
        raise ArtifactError(
            f"{source / WEIGHTS} has {size} bytes; at most {max_bytes} are read (max_bytes)"
        )
    given = folder / "given"
    given.mkdir()
    # Before the copy, to refuse early, and in the copy, which no other process writes to.
    check_tensors(files[WEIGHTS], {config.r})
    shutil.copyfile(files[WEIGHTS], given / WEIGHTS)
    shutil.copyfile(files[PEFT_CONFIG], given / PEFT_CONFIG)
    check_tensors(given / WEIGHTS, {config.r})
    again = _checked_config(given / PEFT_CONFIG, source / PEFT_CONFIG, max_rank)
    return Source(given, again)


def _file(source: Path, name: str) -> Path:
    """The file `name` of `source`: links are followed inside a Hugging Face cache only."""
    path = source / name
    if path.is_symlink():
        # models--*/snapshots/REVISION/[FOLDER/]NAME -> models--*/blobs/DIGEST
        target = path.resolve()
        blobs = [
            (folder.parent / "blobs").resolve()
            for folder in source.resolve().parents
            if folder.name == "snapshots"
        ]
        if target.parent not in blobs:
            raise ArtifactError(
                f"{path} is a link to {target}: links are followed within a Hugging Face cache only"
            )
        path = target
    if not path.is_file():
        raise ArtifactError(
            f"{source / name} is missing: give a folder of PEFT's, weights in safetensors"
        )
    return path


def _checked_config(path: Path, named: Path, max_rank: int) -> PeftConfig:
    try:
        stated = storage.read_json(path, _MAX_CONFIG)
        if not isinstance(stated, dict):
            raise ArtifactError(f"{named} cannot be served: it is no object with PEFT's fields")
        config = PeftConfig.model_validate(stated)
    except ValidationError as error:
        raise ArtifactError(f"{named} cannot be served: {problems(error)}") from error
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{named} cannot be served: {one_line(error)}") from error
    _require_understood(stated, named)
    if config.init_lora_weights not in _INITS:
        raise ArtifactError(
            f"{named} cannot be served: init_lora_weights {config.init_lora_weights!r:.40} changes "
            "the base model's weights; convert the adapter to plain LoRA first (PEFT: "
            "path_initial_model_for_weight_conversion)"
        )
    if config.use_dora:
        raise ArtifactError(f"{named} cannot be served: use_dora: no engine here applies DoRA")
    if config.r > max_rank:
        raise ArtifactError(f"{named}: r is {config.r}; the engine takes a rank of {max_rank}")
    return config


def _require_understood(stated: dict[str, Any], named: Path) -> None:
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for field, value in stated.items():
        if field in PeftConfig.model_fields or field in _WITHOUT_EFFECT:
            continue
        if value in (None, False, "", [], {}) or value == usual.get(field):
            continue
        raise ArtifactError(
            f"{named} cannot be served: {field[:64]} changes what the weights mean, and no engine "
            "here applies it"
        )


def write_plain(source: Source, clean: Path) -> None:
    """Write what serves into `clean`: the same tensors under a configuration without selectors.

    Modules are named one by one, by their tensors: engines overlook what excludes or limits them.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(source.given / WEIGHTS)
    kept = {name: value for name, value in weights.items() if not _is_embedding(name)}
    if len(kept) == len(weights):
        shutil.copyfile(source.given / WEIGHTS, clean / WEIGHTS)
    else:
        save_file(kept, clean / WEIGHTS)
    config = source.config
    selects = config.exclude_modules or config.layers_to_transform is not None
    targets = config.target_modules
    if selects or (isinstance(targets, str) and targets != _ALL):
        targets = _modules(set(kept))
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": targets,
        "use_rslora": config.use_rslora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": "none",
        "use_dora": False,
        "inference_mode": True,
        "base_model_name_or_path": "",
    }
    (clean / PEFT_CONFIG).write_text(json.dumps(plain), encoding="utf-8")


def _modules(tensors: set[str]) -> list[str]:
    """The modules of the model that these tensors belong to, by their full names."""
    paths = (name.removeprefix(_PREFIX).partition(".lora_") for name in tensors)
    return sorted({path for path, mark, _ in paths if mark})


def _is_embedding(name: str) -> bool:
    return name.endswith(_EMBEDDINGS)


def read_given(source: Source, ref: BaseModelRef) -> Any:
    """The base model in float32 with the given folder beside it, as PEFT reads it.

    Raises:
        ArtifactError: it does not fit: by a tensor, a shape, a pattern of its modules.
    """
    import torch
    from peft import PeftModel

    from train_jobs.lora import load_base

    base = load_base(ref, torch.float32).eval()
    _try_patterns(source, base)
    embeddings = {
        "lm_head": base.get_output_embeddings().weight.detach().clone(),
        "embed_tokens": base.get_input_embeddings().weight.detach().clone(),
    }
    try:
        with warnings.catch_warnings():
            # PEFT only warns of missing and unexpected tensors; `_require_fit` refuses them.
            warnings.simplefilter("ignore", UserWarning)
            model = PeftModel.from_pretrained(base, str(source.given)).eval()
    except _OF_PEFT as error:
        raise ArtifactError(f"the adapter does not fit the base model: {_told(error)}") from error
    _require_fit(source, model, embeddings)
    return model


def _told(error: Exception) -> str:
    """The first of what PyTorch lists, and how much more there is."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if not rest:
        return first[:400]
    more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
    return f"{rest[0][:400]}{more}"


def _require_fit(source: Source, model: Any, embeddings: dict[str, Any]) -> None:
    """Raise unless the given tensors are the ones PEFT wants, no more and no fewer.

    The base weights that PEFT saves beside an adapted embedding may be there, if they are the base
    model's.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    given = load_file(source.given / WEIGHTS)
    for name in filter(_is_embedding, given):
        ours = embeddings["lm_head" if "lm_head" in name else "embed_tokens"]
        if not torch.equal(given[name].to(ours.dtype), ours):
            raise ArtifactError(f"{name}: this embedding is not the base model's, and not served")
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    lora = {name for name in given if not _is_embedding(name)}
    said = []
    if missing := sorted(wanted - lora):
        said.append(f"missing: {', '.join(missing[:3])}")
    if more := sorted(lora - wanted):
        said.append(f"without a place: {', '.join(more[:3])}")
    if said:
        raise ArtifactError(
            f"the adapter's tensors are not those of the base model: {'; '.join(said)}"
        )


def _try_patterns(source: Source, base: Any) -> None:
    """Match the folder's patterns with the modules' names once, in bounded time: a pattern may be
    made to take for ever, and PEFT bounds nothing."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = ("target_modules", "exclude_modules", "layers_pattern")
    fields = [name for name in names if isinstance(getattr(source.config, name), str)]
    if not fields or source.config.target_modules == _ALL:
        return
    config = LoraConfig.from_pretrained(str(source.given))
    with _time_limit(f"{', '.join(fields)}: the pattern takes over {_PATTERN_S:.0f} s"):
        try:
            modules = [name for name, _ in base.named_modules()]
            found = any(check_target_module_exists(config, name) for name in modules)
        except (*_OF_PEFT, re.error) as error:
            raise ArtifactError(f"{', '.join(fields)}: {one_line(error)}") from error
        if not found:
            raise ArtifactError(f"{', '.join(fields)}: no module of the base model matches")


@contextmanager
def _time_limit(message: str) -> Iterator[None]:
    """Raise ArtifactError with `message` after `_PATTERN_S`; for the main thread of a job."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise ArtifactError(message)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, _PATTERN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def require_same_reading(given: Any, plain: Any, probes: Iterable[GoldenProbe]) -> None:
    """Raise unless PEFT reads the given folder and the published copy as the same model.

    The proof at a swap compares engines with the copy: a copy that says something else would be
    proved all the same.

    Raises:
        ArtifactError: their log-probabilities differ, in nats a token.
    """
    differences = [_difference(given, plain, probe) for probe in probes]
    worst = max(differences, default=0.0)
    if worst > _MAX_READING or math.isnan(worst):
        raise ArtifactError(
            f"PEFT reads the given folder {worst:.4f} nats a token from what would be served; "
            "convert it to plain LoRA first"
        )


def _difference(given: Any, plain: Any, probe: GoldenProbe) -> float:
    import torch

    tokens = torch.tensor([[*probe.prompt_token_ids, *probe.target_token_ids]])
    with torch.inference_mode():
        read = [
            model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])
            for model in (given, plain)
        ]
    return float((read[0] - read[1]).abs().mean())
