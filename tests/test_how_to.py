"""Every page of docs/how-to runs as it stands, and the index names each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "how-to"
PAGES = sorted(path.name for path in FOLDER.glob("*.md") if path.name != "README.md")


def _example(page: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / page).read_text(), re.DOTALL)
    return "\n".join(blocks)


def test_the_index_names_every_page() -> None:
    index = (FOLDER / "README.md").read_text()
    assert sorted(set(re.findall(r"\]\(([a-z-]+\.md)\)", index))) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_the_example_runs(page: str, tmp_path: Path) -> None:
    example = _example(page)
    assert "assert " in example
    file = tmp_path / "example.py"
    file.write_text(example)
    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
