"""Other people's clients against the running gateway, each in its own idiom.

They live in an environment of their own: their versions are pinned in `tests/clients`, not in the
lock of what serves.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.integration.conftest import Demo

pytestmark = [pytest.mark.integration, pytest.mark.clients]

_CLIENTS = REPOSITORY / "tests" / "clients"
_NAMES = ("openai", "langchain", "llama-index", "litellm", "pydantic-ai")
_FEATURES = ("chat", "stream", "tool_call", "structured_output", "embeddings")
_INSTALL_S, _CHECK_S = 600, 400


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the clients' environment, which is made where it is not there."""
    requirements = _CLIENTS / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    folder = REPOSITORY / ".headrace" / f"clients-{wanted}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=_INSTALL_S
        )
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*install, "-r", str(requirements)], check=True, timeout=_INSTALL_S)
        done.touch()
    return python


@pytest.fixture(scope="module")
def found(demo: Demo, python: Path) -> dict[tuple[str, str], dict[str, object]]:
    """What each client made of each feature."""
    command = [
        *(str(python), "check.py", "--base-url", demo.base_url),
        *("--api-key", demo.api_key, "--model", "auto"),
        *("--embedding-model", "all-minilm-l6-v2", "--max-tokens", "64"),
    ]
    done = subprocess.run(
        command, cwd=_CLIENTS, capture_output=True, text=True, timeout=_CHECK_S, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr[-2000:]
    return {(line["client"], line["feature"]): line for line in lines}


@pytest.mark.parametrize("feature", _FEATURES)
@pytest.mark.parametrize("client", _NAMES)
def test_a_client_works_as_its_users_use_it(
    found: dict[tuple[str, str], dict[str, object]], client: str, feature: str
) -> None:
    result = found[client, feature]
    assert result["ok"], result["detail"]
