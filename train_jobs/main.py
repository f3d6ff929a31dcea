"""Train, evaluate, publish and gate a version: `python -m train_jobs.main --config FILE`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from cluster.config import load
from cluster.errors import HeadraceError, one_line
from cluster.telemetry.logging import configure
from cluster.types import AdapterVersion
from train_jobs.config import TrainConfig

logger = logging.getLogger("train_jobs")


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, run; 2 on a mistake the caller can mend. A refused candidate is no error."""
    parser = argparse.ArgumentParser(prog="train_jobs.main", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--check", action="store_true", help="only read the configuration")
    options = parser.parse_args(arguments)
    configure()
    try:
        config = load(TrainConfig, options.config, options.set)
        if not options.check:
            _run(config)
    except HeadraceError as error:
        logger.error("%s", one_line(error))
        return 2
    return 0


def _run(config: TrainConfig) -> None:
    import ray

    from cluster.control.client import ControlClient
    from cluster.control.protocol import NAMESPACE
    from cluster.storage import require_stable
    from train_jobs.identity import claim
    from train_jobs.launch import fit
    from train_jobs.publish import register

    digest = require_stable(Path(config.dataset))
    claim(config, digest)
    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    control = ControlClient(f"run {config.run_id}")
    started = time.monotonic()
    fitted = fit(config)
    seconds = time.monotonic() - started
    logger.info("fitted on %d rows in %.0f s (%d too long)", fitted.rows, seconds, fitted.too_long)
    path = _evaluate_and_publish(config, fitted.adapter, digest, seconds)
    named = AdapterVersion(config.adapter, config.version)
    version = register(control, path, named, config.tenant)
    verdict = control.do(control.evaluations.judge(version, control.name))
    logger.info(
        "gate: %s %s: %s", version, "passed" if verdict.passed else "refused", verdict.reason
    )


def _evaluate_and_publish(config: TrainConfig, trained: Path, digest: str, seconds: float) -> Path:
    import json

    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from cluster.dataset import ROWS
    from cluster.records.adapter import AdapterManifest
    from cluster.storage import tree_digest
    from cluster.workload import read_turns
    from train_jobs.evals.understanding import Evaluator
    from train_jobs.publish import publish_adapter

    base_digest = tree_digest(Path(config.base_model.path))
    evaluator = Evaluator(
        config.base_model,
        base_digest,
        AutoTokenizer.from_pretrained(config.base_model.path),
        list(read_turns(Path(config.heldout))),
        config.evaluation,
        Path(config.storage) / "scores",
    )
    prompts = pq.read_table(Path(config.dataset) / ROWS, columns=["prompt"]).column("prompt")
    texts = {str(json.loads(prompt)[-1]["content"]) for prompt in prompts.to_pylist()}
    previous = Path(config.previous) if config.previous else None
    evaluation = evaluator.evaluate(trained, previous, config.previous_label, texts)
    manifest = AdapterManifest(
        name=config.adapter,
        version=config.version,
        base_model=Path(config.base_model.path).name,
        base_digest=base_digest,
        rank=config.lora.r,
        dataset=f"{config.adapter}@{Path(config.dataset).name}",
        dataset_digest=digest,
        run_id=config.run_id,
        seconds=round(seconds, 1),
        golden=evaluator.probes(trained),
        evaluation=evaluation,
        recipe=config.recipe,
    )
    return publish_adapter(trained, manifest, Path(config.out))


if __name__ == "__main__":
    sys.exit(main())
