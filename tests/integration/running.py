"""A running cluster as tests use it: its API, its operator commands, adapters of random weights."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import REPOSITORY

#: Settings of the clusters that tests start.
CONFIG = "tests/integration/smoke/demo.yaml"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Operator:
    """Operator commands in one process; see `operator_shell`."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str]) -> dict[str, Any]:
        """The exit code, output and errors of one command."""
        if self._shell is None or self._shell.poll() is not None:
            self._shell = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.operator_shell"],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(json.dumps(arguments) + "\n")
        self._shell.stdin.flush()
        line = self._shell.stdout.readline()
        assert line, f"the operator's process died of {arguments}"
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        """End the process."""
        if self._shell is not None:
            self._shell.kill()
            self._shell.wait()


class RunningCluster:
    """A cluster that a command of ours started and keeps up until it is stopped."""

    base_url: str
    api_key: str

    def __init__(self, workdir: Path, command: list[str], port: int) -> None:
        self.workdir, self.port = workdir, port
        self.output = workdir.parent / "output.txt"
        self._operator = Operator()
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=self.output.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for_output(self, text: str, seconds: float) -> None:
        """Wait until the command has printed `text`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if text in self.output.read_text(errors="replace"):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.5)
        pytest.fail(f"no {text!r} from it:\n{self.output.read_text(errors='replace')[-6000:]}")

    @property
    def openai(self) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0)

    def command(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """An operator command as its user gives it, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "cluster.cli.main", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def do(self, *arguments: str) -> Any:
        """What an operator command says, as JSON."""
        done = self._operator.run([*arguments, "--workdir", str(self.workdir), "--json"])
        assert done["code"] == 0, done["errors"]
        return json.loads(done["output"])

    def make_live(self, versions: dict[str, int], folder: Path) -> None:
        """Versions of random weights: all registered and passed, the first of each live."""
        base = REPOSITORY / "cluster/models/headrace-mini"
        wanted = [f"{name}:{count}" for name, count in versions.items()]
        subprocess.run(
            [
                *(sys.executable, "-m", "serve_app.bench.versions", "--base", str(base)),
                *("--out", str(folder), *wanted),
            ],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            timeout=300,
        )
        for name, count in versions.items():
            for version in range(1, count + 1):
                path = str(folder / name / str(version))
                self.do("adapters", "register", path, "--tenant", "demo")
                assert self.do("adapters", "gate", f"{name}@{version}")["passed"]
                if version == 1:
                    promoted = self.do("adapters", "promote", f"{name}@1")
                    assert promoted["current"] == f"{name}@1"

    def stop(self) -> None:
        """Stop the cluster and everything of it."""
        self._operator.stop()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
