"""Make an adapter from elsewhere a candidate: `python -m train_jobs.adopt --config FILE`.

A bundle of Headrace's is believed once its checksums and its signature are; a PEFT folder of anyone
else's gets golden probes from plain transformers and PEFT on our own base model, so that the swap
is proved as for our own. Nothing is loaded before its files were checked, and no pickle ever.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cluster import storage
from cluster.adapters import MANIFEST
from cluster.bundle import contents, signing
from cluster.config import load
from cluster.errors import ArtifactError, ConfigError, ConflictError, HeadraceError, one_line
from cluster.records.adapter import AdapterManifest
from cluster.telemetry.logging import configure
from cluster.types import AdapterVersion
from train_jobs.config import AdoptConfig
from train_jobs.peft_folder import (
    PeftConfig,
    copied,
    read_given,
    require_same_reading,
    write_plain,
)

if TYPE_CHECKING:
    from train_jobs.evals.understanding import Evaluator

logger = logging.getLogger("train_jobs")

_UNSTATED = "not stated"


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
        logger.error("%s", one_line(error))
        return 2
    return 0


def _run(config: AdoptConfig) -> None:
    import ray

    from cluster.control.client import ControlClient
    from cluster.control.protocol import NAMESPACE
    from train_jobs.publish import register

    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    control = ControlClient(f"run {config.run_id}")
    owner = control.do(control.adapters.owner(config.adapter))
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
    theirs, origin = None, "a PEFT folder of unknown origin"
    if (source / contents.MANIFEST).exists():
        sealed = contents.verified(source, frozenset(config.trusted))
        logger.info("%s of %s is sealed and signed", sealed.version, sealed.exported_at)
        signer = signing.fingerprint((source / contents.SIGNER).read_bytes())
        origin = f"a bundle of {sealed.version}, signed by {signer}"
        source /= contents.ADAPTER
        theirs = _manifest(source / MANIFEST)
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean"
        clean.mkdir()
        given = copied(source, Path(folder), max_rank=config.max_rank, max_bytes=config.max_bytes)
        base_digest = storage.tree_digest(Path(config.base_model.path))
        if theirs is not None and theirs.base_digest != base_digest:
            raise ArtifactError(
                f"{theirs.id} stands on {theirs.base_model} ({theirs.base_digest[:12]}), not on "
                f"the base model that serves here ({base_digest[:12]})"
            )
        _say_other_base(config, given.config)
        reading = read_given(given, config.base_model)
        write_plain(given, clean)
        manifest = _manifested(config, clean, theirs, given.config, base_digest)
        require_same_reading(reading, _plain(config, clean), manifest.golden)
        recipe = {**manifest.recipe, "imported from": origin}
        return publish_adapter(
            clean, manifest.model_copy(update={"recipe": recipe}), Path(config.out)
        )


def _plain(config: AdoptConfig, clean: Path) -> Any:
    import torch

    from train_jobs.lora import with_adapter

    return with_adapter(config.base_model, clean, torch.float32)


def _say_other_base(config: AdoptConfig, peft: PeftConfig) -> None:
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
        raise ArtifactError(f"{path}: {one_line(error)}") from error


def _manifested(
    config: AdoptConfig,
    clean: Path,
    theirs: AdapterManifest | None,
    peft: PeftConfig,
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
        return theirs.model_copy(update={**named, "evaluation": theirs.evaluation.alone()})
    evaluator = _evaluator(config, base_digest)
    previous = Path(config.previous) if config.previous else None
    measured = evaluator.evaluate(clean, previous, config.previous_label, set())
    found = measured.headline
    logger.info("%s %.3f on %d held-out turns", measured.primary, found.value, found.rows)
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
        recipe={
            "objective": _UNSTATED,
            "LoRA alpha": peft.lora_alpha,
            "target modules": _named(peft),
        },
    )


def _named(peft: PeftConfig) -> str:
    modules = peft.target_modules
    return (modules if isinstance(modules, str) else ", ".join(sorted(modules)))[:512]


def _evaluator(config: AdoptConfig, base_digest: str) -> Evaluator:
    from transformers import AutoTokenizer

    from cluster.workload import masked_turn, read_turns
    from train_jobs.evals.understanding import Evaluator

    assert config.heldout is not None
    if not Path(config.heldout).is_file():
        raise ConfigError(f"{config.heldout} is not a file")
    # As serving would see them: they become golden probes, which are kept.
    turns = [masked_turn(turn) for turn in read_turns(Path(config.heldout))]
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
