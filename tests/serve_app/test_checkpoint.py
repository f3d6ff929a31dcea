"""Adapters read at once are what vLLM reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from cluster.adapters import PEFT_CONFIG, WEIGHTS
from cluster.records.adapter import AdapterRecord
from serve_app.engine.checkpoint import Checkpoints
from tests.conftest import MODEL

_EXPECTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}


class _Counted(LoRAModel):  # type: ignore[misc]
    """Counts how often vLLM itself reads."""

    reads = 0

    @classmethod
    def from_local_checkpoint(cls, *arguments: Any, **named: Any) -> Any:
        cls.reads += 1
        return super().from_local_checkpoint(*arguments, **named)


@pytest.fixture
def folders(make_record: Callable[[str, int], AdapterRecord], tmp_path: Path) -> list[Path]:
    """Two versions with the same tensors' names, and one that has no q_proj."""
    whole = [Path(make_record("care", version).path) for version in (1, 2)]
    part = tmp_path / "part"
    shutil.copytree(whole[0], part)
    tensors = load_file(whole[1] / WEIGHTS)
    save_file({n: t for n, t in tensors.items() if "q_proj" not in n}, part / WEIGHTS)
    return [*whole, part]


@pytest.fixture
def of_the_head(tmp_path: Path) -> Path:
    """An adapter of the head too, as PEFT saves it: with the base's own head beside it."""
    torch.manual_seed(7)
    base: Any = AutoModelForCausalLM.from_pretrained(MODEL)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    model: Any = get_peft_model(base, config)
    model.save_pretrained(tmp_path / "head")
    names = load_file(tmp_path / "head" / WEIGHTS).keys()
    assert any(name.endswith("lm_head.base_layer.weight") for name in names)
    return tmp_path / "head"


def _read(by: Any, folder: Path, dtype: torch.dtype) -> Any:
    peft = PEFTHelper.from_local_dir(str(folder), 1024)
    return by.from_local_checkpoint(
        str(folder), _EXPECTED, peft, lora_model_id=7, device="cpu", dtype=dtype
    )


def _same(found: Any, wanted: Any) -> None:
    assert (found.id, found.rank, found.loras.keys()) == (7, wanted.rank, wanted.loras.keys())
    for module, theirs in wanted.loras.items():
        ours = found.loras[module]
        assert (ours.module_name, ours.rank, ours.lora_alpha, ours.scaling) == (
            *(theirs.module_name, theirs.rank, theirs.lora_alpha, theirs.scaling),
        )
        assert ours.lora_a.dtype == theirs.lora_a.dtype
        assert torch.equal(ours.lora_a, theirs.lora_a)
        assert torch.equal(ours.lora_b, theirs.lora_b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_what_vllm_reads(folders: list[Path], dtype: torch.dtype) -> None:
    class Counted(_Counted):
        pass

    checkpoints = Checkpoints(Counted)
    for folder in (*folders, *folders):
        _same(_read(checkpoints, folder, dtype), _read(LoRAModel, folder, dtype))
    assert Counted.reads == 2, "once for each set of names"


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*save_embedding_layers")
def test_an_adapter_of_the_head_is_what_vllm_reads(of_the_head: Path) -> None:
    class Counted(_Counted):
        pass

    checkpoints = Checkpoints(Counted)
    for _ in range(2):
        found = _read(checkpoints, of_the_head, torch.float32)
        _same(found, _read(LoRAModel, of_the_head, torch.float32))
    assert Counted.reads == 1


def test_what_is_out_of_the_ordinary_is_read_by_vllm(folders: list[Path]) -> None:
    class Counted(_Counted):
        pass

    checkpoints = Checkpoints(Counted)
    _read(checkpoints, folders[0], torch.float32)
    config = json.loads((folders[2] / PEFT_CONFIG).read_text())
    config["alpha_pattern"] = {"k_proj": 2}
    (folders[2] / PEFT_CONFIG).write_text(json.dumps(config))
    for _ in range(2):
        found = _read(checkpoints, folders[2], torch.float32)
        _same(found, _read(LoRAModel, folders[2], torch.float32))
    assert Counted.reads == 3


def test_names_that_the_model_has_not_are_refused_each_time(folders: list[Path]) -> None:
    tensors = load_file(folders[0] / WEIGHTS)
    odd = {name.replace("q_proj", "z_proj"): tensor for name, tensor in tensors.items()}
    save_file(odd, folders[2] / WEIGHTS)
    checkpoints = Checkpoints()
    for _ in range(2):
        with pytest.raises(ValueError, match="expected target modules"):
            _read(checkpoints, folders[2], torch.float32)
