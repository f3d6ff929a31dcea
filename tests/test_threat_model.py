"""Every line of the threat model names a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in MODEL.partition("## What holds")[2].splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| who |"))
]


def test_it_has_the_attempts() -> None:
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_each_line_has_its_test(row: list[str]) -> None:
    found = re.fullmatch(r"`([\w/]+\.py)(?:::(\w+))?`", row[-1])
    assert found, row[-1]
    path = ROOT / found[1]
    assert path.is_file()
    if found[2]:
        assert re.search(rf"def {found[2]}\(", path.read_text(encoding="utf-8"))
