"""One small run of the demo, whose cluster stays up for all integration tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import REPOSITORY

_UP_S = 1500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wheel:
    """A finished demo whose cluster still serves."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.port = free_port()
        self.output = workdir.parent / "output.txt"
        self.report_path = workdir.parent / "r.json"
        command = [
            *("./scripts/demo", "--serve"),
            *("--config", "tests/integration/smoke/demo.yaml", "--workdir", str(workdir)),
            *("--port", str(self.port), "--report", str(self.report_path)),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=self.output.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + _UP_S
        while time.monotonic() < deadline:
            if "API key" in self.output.read_text(errors="replace"):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.5)
        pytest.fail(f"the demo did not come up:\n{self.output.read_text(errors='replace')[-6000:]}")

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.report_path.read_text())
        return found

    @property
    def openai(self) -> openai.OpenAI:
        serving = self.report["serving"]
        return openai.OpenAI(
            base_url=serving["base_url"], api_key=serving["api_key"], max_retries=0
        )

    def command(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster.cli.main", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def do(self, *arguments: str, timeout: float = 120) -> Any:
        """What an operator command says, as JSON."""
        given = (*arguments, "--workdir", str(self.workdir), "--json")
        done = self.command(*given, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def make_live(self, name: str, versions: int, folder: Path) -> None:
        """Versions of random weights: all registered and passed, the first one live."""
        base = REPOSITORY / "cluster/models/headrace-mini"
        subprocess.run(
            [
                *(sys.executable, "-m", "serve_app.bench.versions", "--base", str(base)),
                *("--out", str(folder), f"{name}:{versions}"),
            ],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            timeout=300,
        )
        for version in range(1, versions + 1):
            path = str(folder / name / str(version))
            self.do("adapters", "register", path, "--tenant", "demo")
            assert self.do("adapters", "gate", f"{name}@{version}")["passed"]
            if version == 1:
                promoted = self.do("adapters", "promote", f"{name}@1")
                assert promoted["current"] == f"{name}@1"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wheel]:
    found = Wheel(tmp_path_factory.mktemp("wheel") / "work")
    try:
        found.wait_until_serving()
        yield found
    finally:
        found.stop()
