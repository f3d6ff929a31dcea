import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster import storage
from cluster.adapters import check_tensors, inspect
from cluster.errors import ArtifactError
from cluster.records.adapter import MAX_PROBES, GoldenProbe
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


def _weights(path: Path, dtype: str, shape: list[int], content: bytes, name: str = "w") -> None:
    """Replace the weights by one tensor."""
    item = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, name: item}).encode()
    weights = len(header).to_bytes(8, "little") + header + content
    (path / "adapter_model.safetensors").write_bytes(weights)
    _republish(path)


@pytest.mark.parametrize(
    ("dtype", "good", "wrong"),
    [
        ("F32", struct.pack("<2f", 1.5, -3e38), struct.pack("<2f", 1.0, math.nan)),
        ("F32", struct.pack("<2f", 0.0, 1e-40), struct.pack("<2f", math.inf, 1.0)),
        ("F16", struct.pack("<2e", 1.0, 65504.0), struct.pack("<2e", 1.0, -math.inf)),
        ("BF16", b"\x80\x3f\x7f\x7f", b"\x80\x3f\xc0\x7f"),
        ("F64", struct.pack("<2d", 1.0, 1e308), struct.pack("<2d", math.nan, 1.0)),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    make_adapter: Callable[..., Path], dtype: str, good: bytes, wrong: bytes
) -> None:
    path = make_adapter()
    _weights(path, dtype, [2], good)
    assert check_tensors(path / "adapter_model.safetensors", {8}) == {"w"}
    _weights(path, dtype, [2], wrong)
    with pytest.raises(ArtifactError, match="not finite"):
        inspect(path, max_rank=32)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "message"),
    [
        ("F32", [3], 8, "size of its shape"),
        ("I64", [1], 8, "floating point"),
        ("F8_E4M3", [8], 8, "floating point"),
        ("F32", [-2], 8, "safetensors"),
    ],
)
def test_tensors_that_are_not_what_they_say_are_refused(
    make_adapter: Callable[..., Path], dtype: str, shape: list[int], size: int, message: str
) -> None:
    path = make_adapter()
    _weights(path, dtype, shape, b"\0" * size)
    with pytest.raises(ArtifactError, match=message):
        inspect(path, max_rank=32)


def test_tensors_that_share_bytes_are_refused(make_adapter: Callable[..., Path]) -> None:
    """A small file could otherwise be read for hours."""
    path = make_adapter()
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({f"w{number}": entry for number in range(3)}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    (path / "adapter_model.safetensors").write_bytes(content)
    _republish(path)
    with pytest.raises(ArtifactError, match="overlap"):
        inspect(path, max_rank=32)


def test_weights_of_another_rank_than_stated_are_refused(make_adapter: Callable[..., Path]) -> None:
    path = make_adapter()
    name = "base_model.model.q_proj.lora_A.weight"
    _weights(path, "F32", [8, 2], b"\0" * 64, name)
    check_tensors(path / "adapter_model.safetensors", {8})
    _weights(path, "F32", [4, 4], b"\0" * 64, name)
    with pytest.raises(ArtifactError, match="rank"):
        inspect(path, max_rank=32)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("base_model.model.q_proj.lora_A.weight", [8, 2], "has no .*lora_B.weight beside it"),
        ("base_model.model.q_proj.lora_B.weight", [2, 8], "has no .*lora_A.weight beside it"),
        ("base_model.model.q_proj.weight", [4, 4], "no tensor of it is of a LoRA layer"),
    ],
)
def test_weights_that_are_no_whole_lora_layer_are_refused(
    make_adapter: Callable[..., Path], name: str, shape: list[int], message: str
) -> None:
    path = make_adapter()
    _weights(path, "F32", shape, b"\0" * 64, name)
    with pytest.raises(ArtifactError, match=message):
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


@pytest.mark.parametrize(
    "odd",
    [
        {"logprobs": [float("nan")]},
        {"prompt_logprobs": [float("-inf")]},
        {"prompt_token_ids": [-1, 2]},
        {"target_token_ids": [1.5]},
    ],
)
def test_a_probe_of_what_is_no_number_or_no_token_is_refused(odd: dict[str, list[float]]) -> None:
    sound = {"prompt_token_ids": [1, 2], "target_token_ids": [3], "logprobs": [-0.1]}
    assert GoldenProbe.model_validate(sound)
    with pytest.raises(ValidationError):
        GoldenProbe.model_validate({**sound, **odd})


def test_so_many_probes_are_refused_as_would_hold_up_an_engine(
    make_adapter: Callable[..., Path],
) -> None:
    probe = GoldenProbe(prompt_token_ids=(1, 2), target_token_ids=(3,), logprobs=(-0.1,))
    assert inspect(make_adapter(golden=(probe,) * MAX_PROBES), max_rank=32)
    over = make_adapter(version=2, golden=(probe,) * (MAX_PROBES + 1))
    with pytest.raises(ArtifactError, match=f"at most {MAX_PROBES}"):
        inspect(over, max_rank=32)


@pytest.mark.parametrize(
    "probe",
    [
        GoldenProbe(prompt_token_ids=(1,), target_token_ids=(), logprobs=()),
        GoldenProbe(prompt_token_ids=(), target_token_ids=(1,), logprobs=(-0.1,)),
        GoldenProbe(prompt_token_ids=(1,), target_token_ids=(1, 2), logprobs=(-0.1,)),
        GoldenProbe(
            prompt_token_ids=(1, 2),
            target_token_ids=(1,),
            logprobs=(-0.1,),
            prompt_logprobs=(-1, -2),
        ),
    ],
)
def test_probes_that_prove_nothing_are_refused(
    make_adapter: Callable[..., Path], probe: GoldenProbe
) -> None:
    with pytest.raises(ArtifactError, match="golden probe"):
        inspect(make_adapter(golden=(probe,)), max_rank=32)
