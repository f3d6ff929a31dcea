"""Configuration, types and `--help` are light: no Ray, no PyTorch, no engine."""

import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "vllm", "deepspeed", "transformers", "sqlalchemy")
LIGHT = (
    "cluster.types",
    "cluster.config",
    "cluster.cli.main",
    "serve_app.config",
    "serve_app.main",
    "serve_app.bench.main",
    # Ray reads its token when it is imported, so a benchmark may not until its cluster is up.
    "serve_app.bench.gateway",
    "serve_app.bench.engine",
    "serve_app.bench.pressure",
    "serve_app.bench.soak",
    "data_jobs.config",
    "data_jobs.main",
    "train_jobs.config",
    "train_jobs.main",
)


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["serve_app.main", "data_jobs.main", "train_jobs.main"])
def test_help_answers(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    assert "--config" in result.stdout


def test_a_wrong_setting_is_one_line(tmp_path: object) -> None:
    command = [sys.executable, "-m", "train_jobs.main", "--config", "configs/train/local.yaml"]
    result = subprocess.run(
        [*command, "--set", "epochs=0", "--check"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert "epochs" in result.stderr
    assert "Traceback" not in result.stderr
