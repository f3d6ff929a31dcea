"""A working folder: its files, its cluster, and the jobs and commands started for it."""

from __future__ import annotations

import shutil
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from cluster.control import jobs
from cluster.errors import ConfigError, ConflictError
from cluster.launch.config import LocalConfig
from cluster.launch.local import LocalCluster, attach, running, start
from cluster.progress import ProgressReporter

REPOSITORY = Path(__file__).resolve().parents[2]
_MIN_FREE_BYTES = 2 << 30
#: What the graph reads of a run's folder.
ROUTER, INDEX = ("workload", "router"), ("workload", "index")


@dataclass
class Site:
    """One run: its configuration, its folder, its cluster."""

    config: LocalConfig
    workdir: Path
    progress: ProgressReporter
    cluster: LocalCluster | None = None
    job_ids: list[str] = field(default_factory=list)
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    @classmethod
    def prepare(cls, config: LocalConfig, workdir: Path, progress: ProgressReporter) -> Site:
        """An empty working folder and a checked configuration.

        Raises:
            ConflictError: an earlier run from this folder still serves, or the disk is full.
        """
        _require_stopped(workdir)
        if workdir.exists():
            shutil.rmtree(workdir)
        workdir.mkdir(parents=True)
        return cls(config, workdir, progress)._with_room()

    @classmethod
    def existing(cls, config: LocalConfig, workdir: Path, progress: ProgressReporter) -> Site:
        """The working folder of an earlier run, with all that is in it.

        Raises:
            ConfigError: there is none.
            ConflictError: it still serves, or the disk is full.
        """
        _require_stopped(workdir)
        for part in (ROUTER, INDEX):
            if not workdir.joinpath(*part).is_dir():
                path = workdir.joinpath(*part)
                raise ConfigError(f"{path} is missing: ./scripts/demo makes it, once")
        return cls(config, workdir, progress)._with_room()

    def _with_room(self) -> Site:
        workdir = self.workdir
        free = shutil.disk_usage(workdir).free
        if free < _MIN_FREE_BYTES:
            raise ConflictError(
                f"{workdir} has {free >> 20} MiB free; the run needs {_MIN_FREE_BYTES >> 20}"
            )
        return self

    def start_cluster(self) -> LocalCluster:
        """Start Ray and connect this process to it."""
        self.cluster = start(self.workdir, num_cpus=self.config.num_cpus)
        attach(self.cluster)
        return self.cluster

    def path(self, *parts: str) -> str:
        """An absolute path in the run's folder."""
        return str(self.workdir.joinpath(*parts).resolve())

    @property
    def base_model(self) -> str:
        """The base model's directory."""
        return str(REPOSITORY / self.config.base_model.path)

    def module_command(self, module: str, config: str, settings: dict[str, object]) -> list[str]:
        """The command line of one of our modules with its configuration and overrides."""
        return [sys.executable, "-m", module, *self.arguments(config, settings)]

    def arguments(self, config: str, settings: dict[str, object]) -> list[str]:
        """`--config` and `--set` arguments."""
        result = ["--config", str(REPOSITORY / config)]
        for key, value in settings.items():
            result += ["--set", f"{key}={value}"]
        return result

    def job(self, label: str, module: str, arguments: list[str], timeout_s: float = 900.0) -> str:
        """Run a job with `ray job submit`, relay its log, and return its id."""
        assert self.cluster is not None
        job_id = f"{label}-{self.run}"
        self.progress.say(f"ray job submit --submission-id {job_id} -- python -m {module} ...")
        job = jobs.submit(self.cluster.dashboard, job_id, module, arguments)
        self.job_ids.append(job_id)
        package = module.split(".", maxsplit=1)[0]
        relay = jobs.own_lines(package, lambda line: self.progress.say(f"  {label}: {line}"))
        job.wait(timeout_s, relay)
        return job_id


def _require_stopped(workdir: Path) -> None:
    if running(workdir) is not None:
        raise ConflictError(f"a cluster from {workdir} is still up: run ./scripts/down first")
