"""README's commands exist and answer, its links lead somewhere, its YAML is the file's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cluster.budget.prices import PriceBook
from cluster.config import load
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _asked(*verb: str) -> list[str]:
    return [".venv/bin/headrace", *verb, "--help"]


#: Commands the integration test runs whole, and how to ask the others without doing the work.
PROBES = {
    "./scripts/demo": ["./scripts/demo", "--help"],
    "./scripts/down": ["./scripts/down", "--help"],
    ".venv/bin/headrace adapters": [".venv/bin/headrace", "adapters", "--help"],
    ".venv/bin/headrace verify": [".venv/bin/headrace", "verify", "--help"],
    ".venv/bin/headrace keys issue --tenant acme --duration 30d": _asked("keys", "issue"),
    ".venv/bin/headrace keys list": _asked("keys", "list"),
    ".venv/bin/headrace adapters grant insurance acme": _asked("adapters", "grant"),
    ".venv/bin/headrace adapters register ./insurance-3 --tenant demo": _asked(
        "adapters", "register"
    ),
    ".venv/bin/headrace adapters gate insurance@3": _asked("adapters", "gate"),
    ".venv/bin/headrace adapters rules insurance --file configs/gate/understanding.yaml": (
        _asked("adapters", "rules")
    ),
    ".venv/bin/headrace usage --tenant demo": _asked("usage"),
    ".venv/bin/headrace keys issue --tenant acme --rpm 600 --tpm 90000 --usd 25 --period 30d": (
        _asked("keys", "issue")
    ),
    ".venv/bin/headrace usage limit acme --usd 500 --period 30d": _asked("usage", "limit"),
    ".venv/bin/headrace usage prices ./prices.yaml": _asked("usage", "prices"),
    ".venv/bin/headrace export insurance@2 --out ./insurance-2": _asked("export"),
    ".venv/bin/headrace import ./insurance-2 --tenant acme --name insurance-acme": _asked("import"),
    ".venv/bin/headrace rollout start insurance@3": _asked("rollout", "start"),
    ".venv/bin/headrace rollout status": _asked("rollout", "status"),
    '.venv/bin/headrace rollout appeal insurance@3 --reason "one store\'s scanner"': _asked(
        "rollout", "appeal"
    ),
    "./scripts/fuzz": [".venv/bin/python", "-m", "tests.fuzz.main", "--help"],
    '.venv/bin/headrace kill insurance --reason "wrong refunds"': _asked("kill"),
    ".venv/bin/headrace revive insurance": _asked("revive"),
    ".venv/bin/headrace events": _asked("events"),
    ".venv/bin/headrace tenants suspend acme": _asked("tenants", "suspend"),
    ".venv/bin/headrace up": _asked("up"),
    "scripts/train-base-model": [".venv/bin/python", "scripts/train-base-model", "--help"],
    "./scripts/bench": [".venv/bin/python", "-m", "serve_app.bench.main", "--help"],
    "./scripts/test": ["bash", "-n", "scripts/test"],
    "./scripts/check": ["bash", "-n", "scripts/check"],
}


def _commands() -> set[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`((?:\./)?scripts/[a-z-]+)[^`]*`", README)
    return {line for line in [*lines, *inline] if line}


def test_every_command_is_known_to_a_test() -> None:
    assert _commands() == set(PROBES)


@pytest.mark.parametrize("command", sorted(PROBES))
def test_it_answers(command: str) -> None:
    result = subprocess.run(
        PROBES[command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_its_price_book_is_one(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(default: .*?)```", README, re.DOTALL)
    assert shown is not None
    file = tmp_path / "prices.yaml"
    file.write_text(shown[1], encoding="utf-8")
    book = load(PriceBook, file)
    assert book.tokens("insurance@2").cost(1_000_000, 2_000_000) == 7.0
    assert book.tokens("retail@1").cost(1_000_000, 2_000_000) == 3.5
    # No key of it that a price book has is missing here.
    assert book.model_fields_set == set(PriceBook.model_fields)


def test_links_lead_somewhere() -> None:
    for document in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_paths_named_in_the_docs_exist() -> None:
    text = README + Path(REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    roots = "cluster|serve_app|data_jobs|train_jobs|configs|scripts|docs"
    for path in re.findall(rf"`((?:{roots})/[\w./-]*[\w/])`", text):
        assert (REPOSITORY / path).exists(), path


def test_every_dependency_has_its_line() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    page = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for requirement in [*project["dependencies"], *extras]:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert name in page, name
