import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import storage
from cluster.adapters import inspect
from cluster.errors import ArtifactError
from cluster.types import AdapterVersion


def _republish(path: Path) -> None:
    (path / storage.STABLE).write_text(storage.tree_digest(path) + "\n")


def test_a_good_directory_is_read(make_adapter: Callable[..., Path]) -> None:
    assert inspect(make_adapter(), max_rank=32).id == AdapterVersion("inventory", 1)


def test_rank_above_the_engine_is_refused(make_adapter: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match="rank"):
        inspect(make_adapter(), max_rank=4)


def test_pickled_weights_are_refused(make_adapter: Callable[..., Path]) -> None:
    path = make_adapter()
    (path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    _republish(path)
    with pytest.raises(ArtifactError, match=r"adapter_model\.bin"):
        inspect(path, max_rank=32)


@pytest.mark.parametrize("weights", [b"", b"\0" * 8, b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"])
def test_broken_weights_are_refused(make_adapter: Callable[..., Path], weights: bytes) -> None:
    path = make_adapter()
    (path / "adapter_model.safetensors").write_bytes(weights)
    _republish(path)
    with pytest.raises(ArtifactError, match=r"safetensors|no tensor"):
        inspect(path, max_rank=32)


def test_empty_tensors_are_refused(make_adapter: Callable[..., Path]) -> None:
    path = make_adapter()
    header = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    _republish(path)
    with pytest.raises(ArtifactError, match="empty"):
        inspect(path, max_rank=32)


def test_without_probes_a_swap_could_not_be_proved(make_adapter: Callable[..., Path]) -> None:
    with pytest.raises(ArtifactError, match="golden"):
        inspect(make_adapter(golden=()), max_rank=32)


@pytest.mark.parametrize(
    "text", ["insurance", "insurance@0", "../x@1", "A@1", "x@1e3", "x@" + "9" * 12]
)
def test_names_that_are_no_version(text: str) -> None:
    with pytest.raises(ValueError, match=r"version|valid name"):
        AdapterVersion.parse(text)
