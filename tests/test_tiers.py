"""Every test module has its tier, and the scripts say what they take."""

import subprocess

import pytest

from tests.conftest import REPOSITORY
from tests.tiers import TIERS, UNIT, tier_of

TESTS = REPOSITORY / "tests"


def test_the_listed_modules_are_there() -> None:
    assert [name for name in sorted(UNIT) if not (TESTS / name).is_file()] == []


def test_every_module_is_of_a_tier() -> None:
    found = {tier_of(path) for path in TESTS.rglob("test_*.py")}
    assert found == set(TIERS)


@pytest.mark.parametrize("script", ["test", "check"])
def test_a_script_explains_itself(script: str) -> None:
    done = subprocess.run(
        [f"./scripts/{script}", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"scripts/{script}" in done.stdout
