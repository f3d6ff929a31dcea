"""Make an adapter from elsewhere a candidate: `python -m train_jobs.adopt --config FILE`.

A bundle of Headrace's is believed once its checksums and its signature are; a PEFT folder of anyone
else's gets golden probes from plain transformers and PEFT on our own base model, so that the swap
is proved as for our own. Nothing is loaded before its files were checked, and no pickle ever.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster import storage
from cluster.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS, AdapterManifest, check_tensors
from cluster.bundle import contents, signing
from cluster.config import load
from cluster.errors import ArtifactError, ConfigError, ConflictError, HeadraceError
from cluster.telemetry.logging import configure
from cluster.types import AdapterVersion
from train_jobs.config import AdoptConfig

if TYPE_CHECKING:
    from train_jobs.evals.understanding import Evaluator

logger = logging.getLogger("train_jobs")

_MAX_CONFIG = 1 << 20
_UNSTATED = "not stated"
#: What PEFT calls every linear layer, and how its names of tensors begin.
_ALL, _PREFIX = "all-linear", "base_model.model."


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, adopt; 2 on a mistake the caller can mend."""
    parser = argparse.ArgumentParser(prog="train_jobs.adopt", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    configure()
    try:
        _run(load(AdoptConfig, options.config, options.set))
    except HeadraceError as error:
        logger.error("%s", error)
        return 2
    return 0


def _run(config: AdoptConfig) -> None:
    import ray

    from cluster.control.client import ControlClient
    from cluster.control.protocol import NAMESPACE
    from train_jobs.publish import register

    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    control = ControlClient(f"run {config.run_id}")
    owner = control.owner(config.adapter)
    if owner not in (None, config.tenant):
        raise ConflictError(
            f"adapter {config.adapter!r} belongs to another tenant: choose another name"
        )
    path = adopt(config)
    named = AdapterVersion(config.adapter, config.version)
    version = register(control, path, named, config.tenant)
    logger.info("%s is a candidate", version)


def adopt(config: AdoptConfig) -> Path:
    """Check, prove, evaluate and publish; the published directory.

    Raises:
        ArtifactError: the source is not what it should be, or does not fit the base model.
        ConfigError: there is nothing to evaluate it on.
    """
    from train_jobs.publish import publish_adapter

    source = Path(config.source)
    theirs, origin = None, "a PEFT folder, of nobody known"
    if (source / contents.MANIFEST).exists():
        sealed = contents.verified(source, frozenset(config.trusted))
        logger.info("%s of %s is sealed and signed", sealed.version, sealed.exported_at)
        signer = signing.fingerprint((source / contents.SIGNER).read_bytes())
        origin = f"a bundle of {sealed.version}, signed by {signer}"
        source /= contents.ADAPTER
        theirs = _manifest(source / MANIFEST)
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder)
        peft = _copy_checked(source, clean, config)
        base_digest = storage.tree_digest(Path(config.base_model.path))
        if theirs is not None and theirs.base_digest != base_digest:
            raise ArtifactError(
                f"{theirs.id} stands on {theirs.base_model} ({theirs.base_digest[:12]}), not on "
                f"the base model that serves here ({base_digest[:12]})"
            )
        _say_other_base(config, peft)
        _require_fit(config, clean)
        manifest = _manifested(config, clean, theirs, peft, base_digest)
        recipe = {**manifest.recipe, "imported from": origin}
        return publish_adapter(
            clean, manifest.model_copy(update={"recipe": recipe}), Path(config.out)
        )


class _PeftConfig(BaseModel):
    """What of PEFT's configuration means the same here and in the engine; the rest is not taken.

    Fields that would change what the weights mean must have the value they have here.
    """

    model_config = ConfigDict(extra="ignore")
    peft_type: str = Field(pattern="^LORA$")
    task_type: str | None = Field(default="CAUSAL_LM", pattern="^CAUSAL_LM$")
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    target_modules: list[str] | str
    use_rslora: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict, max_length=0)
    alpha_pattern: dict[str, float] = Field(default_factory=dict, max_length=0)
    bias: str = Field(default="none", pattern="^none$")
    use_dora: bool | None = Field(default=False)
    modules_to_save: list[str] | None = Field(default=None, max_length=0)
    fan_in_fan_out: bool = False
    base_model_name_or_path: str | None = None


def _copy_checked(source: Path, clean: Path, config: AdoptConfig) -> _PeftConfig:
    """Copy the two files that count, checked; the rest of the folder is never read."""
    for name in (WEIGHTS, PEFT_CONFIG):
        if (source / name).is_symlink() or not (source / name).is_file():
            raise ArtifactError(
                f"{source / name} is missing: give a folder of PEFT's, weights in safetensors"
            )
    try:
        stated = storage.read_json(source / PEFT_CONFIG, _MAX_CONFIG)
        peft = _PeftConfig.model_validate(stated)
    except (ValueError, ValidationError) as error:
        raise ArtifactError(f"{source / PEFT_CONFIG} cannot be served: {error}"[:500]) from error
    if peft.use_dora or peft.r > config.max_rank:
        raise ArtifactError(
            f"{source / PEFT_CONFIG}: the engine takes LoRA of rank {config.max_rank} at most, no "
            "DoRA"
        )
    if (size := (source / WEIGHTS).stat().st_size) > config.max_bytes:
        raise ArtifactError(
            f"{source / WEIGHTS} has {size} bytes; at most {config.max_bytes} are read (max_bytes)"
        )
    # There and, as nobody else writes to it, in the copy.
    check_tensors(source / WEIGHTS, {peft.r})
    shutil.copy(source / WEIGHTS, clean / WEIGHTS)
    names = check_tensors(clean / WEIGHTS, {peft.r})
    if isinstance(peft.target_modules, str) and peft.target_modules != _ALL:
        # To PEFT it is a regular expression, which may take for ever: the tensors tell as well.
        peft = peft.model_copy(update={"target_modules": _modules(names)})
    kept = {**peft.model_dump(exclude={"modules_to_save"}), "base_model_name_or_path": ""}
    kept["use_dora"], kept["task_type"], kept["inference_mode"] = False, "CAUSAL_LM", True
    (clean / PEFT_CONFIG).write_text(json.dumps(kept), encoding="utf-8")
    return peft


def _modules(tensors: set[str]) -> list[str]:
    """The modules of the model that these tensors belong to, by their full names."""
    paths = (name.removeprefix(_PREFIX).partition(".lora_") for name in tensors)
    return sorted({path for path, mark, _ in paths if mark})


def _say_other_base(config: AdoptConfig, peft: _PeftConfig) -> None:
    """Warn where the folder names another base: shapes may fit that weights do not. A name proves
    nothing, so what decides is the evaluation on held-out turns."""
    stated = Path(peft.base_model_name_or_path or "").name
    ours = Path(config.base_model.path).name
    if stated and stated != ours:
        logger.warning("the adapter says it was fitted on %r; %s serves here", stated[:128], ours)


def _manifest(path: Path) -> AdapterManifest:
    try:
        return AdapterManifest.model_validate(storage.read_json(path))
    except (ValueError, ValidationError) as error:
        raise ArtifactError(f"{path}: {error}"[:500]) from error


def _require_fit(config: AdoptConfig, clean: Path) -> None:
    """Every tensor has its place in the base model, and every place its tensor."""
    import torch
    from peft import get_peft_model_state_dict

    from train_jobs.lora import with_adapter

    given = check_tensors(clean / WEIGHTS, {_rank(clean)})
    try:
        with warnings.catch_warnings():
            # PEFT warns of what is missing or too much; below it is an error.
            warnings.simplefilter("ignore", UserWarning)
            model = with_adapter(config.base_model, clean, torch.float32)
    except (RuntimeError, ValueError, KeyError) as error:  # of PEFT: shapes, unknown modules
        raise ArtifactError(f"the adapter does not fit the base model: {error}"[:500]) from error
    wanted = set(get_peft_model_state_dict(model))
    if odd := sorted(given ^ wanted)[:3]:
        raise ArtifactError(f"the adapter's tensors are not those of the base model: {odd}")


def _rank(clean: Path) -> int:
    stated: Any = storage.read_json(clean / PEFT_CONFIG)
    return int(stated["r"])


def _manifested(
    config: AdoptConfig,
    clean: Path,
    theirs: AdapterManifest | None,
    peft: _PeftConfig,
    base_digest: str,
) -> AdapterManifest:
    """Ours for it: theirs as far as it is known, measured here where there is something to
    measure on."""
    # No second of training was spent here: none is billed.
    named: dict[str, Any] = {"name": config.adapter, "version": config.version, "seconds": 0.0}
    if config.heldout is None:
        if theirs is None:
            raise ConfigError(
                "a foreign adapter is proved and judged on held-out turns: give --heldout FILE"
            )
        alone = {"previous": None, "previous_accuracy": None, "wins": 0, "losses": 0}
        return theirs.model_copy(
            update={**named, "evaluation": theirs.evaluation.model_copy(update=alone)}
        )
    evaluator = _evaluator(config, base_digest)
    previous = Path(config.previous) if config.previous else None
    measured = evaluator.evaluate(clean, previous, config.previous_label, set())
    logger.info("accuracy %.3f on %d held-out turns", measured.accuracy, measured.heldout_rows)
    if theirs is not None:
        return theirs.model_copy(update={**named, "evaluation": measured})
    return AdapterManifest(
        **named,
        base_model=Path(config.base_model.path).name,
        base_digest=base_digest,
        rank=peft.r,
        dataset=_UNSTATED,
        dataset_digest=_UNSTATED,
        run_id=config.run_id,
        golden=evaluator.probes(clean),
        evaluation=measured,
        recipe={"method": _UNSTATED, "LoRA alpha": peft.lora_alpha, "target modules": _named(peft)},
    )


def _named(peft: _PeftConfig) -> str:
    modules = peft.target_modules
    return (modules if isinstance(modules, str) else ", ".join(sorted(modules)))[:512]


def _evaluator(config: AdoptConfig, base_digest: str) -> Evaluator:
    from transformers import AutoTokenizer

    from cluster.workload import read_turns
    from train_jobs.evals.understanding import Evaluator

    assert config.heldout is not None
    turns = list(read_turns(Path(config.heldout)))
    if not turns:
        raise ConfigError(f"{config.heldout} holds no turns to evaluate on")
    return Evaluator(
        config.base_model,
        base_digest,
        AutoTokenizer.from_pretrained(config.base_model.path),
        turns,
        config.evaluation,
        Path(config.storage) / "scores",
    )


if __name__ == "__main__":
    sys.exit(main())
