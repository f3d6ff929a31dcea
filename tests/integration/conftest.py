"""The clusters of the integration tests: one a tier, started by the first test that needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.integration.running import CONFIG, RunningCluster, free_port

_UP_S, _DEMO_S, _IMPORT_S = 300, 1500, 300


class Plane(RunningCluster):
    """A cluster whose adapters have random weights: `focus` at version 2, `other` at version 1."""

    focus, other = "inventory", "loyalty"

    def __init__(self, folder: Path) -> None:
        workdir, port = folder / "work", free_port()
        # The router and the document index are what a cluster cannot do without.
        subprocess.run(
            [
                *(sys.executable, "-m", "data_jobs.main", "import"),
                *("--config", "tests/integration/smoke/import.yaml"),
                *("--set", f"out={workdir / 'workload'}"),
            ],
            cwd=REPOSITORY,
            # Its own, whatever cluster was started on this machine last.
            env={**os.environ, "RAY_ADDRESS": "local"},
            check=True,
            capture_output=True,
            timeout=_IMPORT_S,
        )
        command = [sys.executable, "-m", "cluster.cli.main", "up", "--workdir", str(workdir)]
        super().__init__(workdir, [*command, "--config", CONFIG, "--port", str(port)], port)
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def prepare(self, folder: Path) -> None:
        """Issue a key and bring the adapters into service."""
        self.wait_for_output("base URL", _UP_S)
        roles = ("--role", "inference", "--role", "label")
        vouches = ("--attribute", "vouches_for_users=true")
        self.api_key = self.do("keys", "issue", "--tenant", "demo", *roles, *vouches)["secret"]
        self.make_live({self.focus: 2, self.other: 1}, folder)
        assert self.do("adapters", "promote", f"{self.focus}@2")["current"] == f"{self.focus}@2"


class Demo(RunningCluster):
    """A finished demonstration whose cluster still serves."""

    def __init__(self, folder: Path) -> None:
        workdir, port = folder / "work", free_port()
        self.report_path = folder / "r.json"
        command = [
            *("./scripts/demo", "--serve", "--config", CONFIG, "--workdir", str(workdir)),
            *("--port", str(port), "--report", str(self.report_path)),
        ]
        super().__init__(workdir, command, port)

    def prepare(self) -> None:
        """Wait until it serves."""
        self.wait_for_output("API key", _DEMO_S)
        serving = self.report["serving"]
        self.base_url, self.api_key = serving["base_url"], serving["api_key"]

    @property
    def report(self) -> dict[str, Any]:
        """What it reports of its run."""
        found: dict[str, Any] = json.loads(self.report_path.read_text())
        return found

    @property
    def focus(self) -> str:
        """The adapter that it improved."""
        return str(self.report["swap"]["adapter"])


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    found = Plane(tmp_path_factory.mktemp("plane"))
    try:
        found.prepare(tmp_path_factory.mktemp("versions"))
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    found = Demo(tmp_path_factory.mktemp("demo"))
    try:
        found.prepare()
        yield found
    finally:
        found.stop()
