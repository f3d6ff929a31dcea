from pathlib import Path

import pytest

from cluster.config import BaseModelRef, ConfigModel, load
from cluster.errors import ConfigError


class Sample(ConfigModel):
    base_model: BaseModelRef
    size: int = 1


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_overrides_apply_in_order(tmp_path: Path) -> None:
    path = _file(tmp_path, "base_model: {path: a}\n")
    found = load(Sample, path, ["base_model.path=b", "size=2", "size=3"])
    assert (found.base_model.path, found.size) == ("b", 3)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("base_model: {path: a}\nsise: 2\n", [], "sise"),
        ("base_model: {path: a}\n", ["size=many"], "size"),
        ("base_model: {path: a}\n", ["size"], "key=value"),
        ("base_model: {path: a}\n", ["size.deep=1", "size.deep.er=2"], "not a mapping"),
        ("[1, 2]", [], "mapping"),
        ("a: [", [], "not YAML"),
        ("base_model: {path: a}\n", ["size=[1"], "not YAML"),
        ("!!python/object/apply:os.system ['true']", [], "not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Sample, _file(tmp_path, text), overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(Sample, tmp_path / "none.yaml")
