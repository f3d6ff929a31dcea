"""Run a data job: `python -m data_jobs.main import|dataset --config FILE`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from cluster.config import load
from cluster.errors import HeadraceError, one_line
from cluster.telemetry.logging import configure
from data_jobs.config import DatasetConfig, ImportConfig

logger = logging.getLogger("data_jobs")


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, run. Exits 2 on a mistake the caller can mend."""
    parser = argparse.ArgumentParser(prog="data_jobs.main", description=__doc__)
    parser.add_argument("job", choices=("import", "dataset"))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check the configuration and that its source is there",
    )
    options = parser.parse_args(arguments)
    configure()
    try:
        if options.job == "import":
            config = load(ImportConfig, options.config, options.set)
            if options.check:
                _check_source(config)
            else:
                _import(config)
        else:
            dataset = load(DatasetConfig, options.config, options.set)
            if not options.check:
                _dataset(dataset)
    except HeadraceError as error:
        logger.error("%s", one_line(error))
        return 2
    return 0


def _check_source(config: ImportConfig) -> None:
    from data_jobs.sources.multidogo import choose_domains

    if config.data:
        choose_domains(Path(config.data), config.domains)


def _import(config: ImportConfig) -> None:
    import ray

    from data_jobs.importing import import_workload

    ray.init(log_to_driver=False, logging_level="ERROR")
    summary = import_workload(config)
    logger.info("imported %s: domains %s", summary.name, ", ".join(summary.domains))


def _dataset(config: DatasetConfig) -> None:
    import ray

    from cluster.control.client import ControlClient
    from cluster.control.protocol import NAMESPACE
    from data_jobs.pipeline import build_dataset

    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    control = ControlClient()
    labels = control.do(control.labels.given(config.tenant, config.adapter))
    path = build_dataset(config, labels)
    manifest = control.do(control.datasets.register(str(path)))
    logger.info(
        "published %s@%d: %d rows, %d from traces",
        manifest.name,
        manifest.version,
        manifest.rows,
        manifest.from_traces,
    )


if __name__ == "__main__":
    sys.exit(main())
