"""An imported adapter means what PEFT reads of it, or is refused by the field's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cluster.adapters import PEFT_CONFIG, WEIGHTS
from cluster.config import BaseModelRef
from cluster.errors import ArtifactError
from cluster.records.adapter import GoldenProbe
from tests.conftest import MODEL
from train_jobs.lora import with_adapter
from train_jobs.peft_folder import copied, read_given, require_same_reading, write_plain

# PEFT advises on tied embeddings; what it advises is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
_SHAPE = json.loads((MODEL / "config.json").read_text())
BASE = BaseModelRef(path=str(MODEL), dtype="float32")
PROBE = GoldenProbe(prompt_token_ids=(5, 9, 40), target_token_ids=(11, 12), logprobs=(-1.0, -1.0))
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder as PEFT saves it, of an adapter with weights that show."""

    def made(*, save_embedding_layers: bool = False, **settings: Any) -> Path:
        chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings}
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
            LoraConfig(task_type="CAUSAL_LM", **chosen),
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
        out = tmp_path / f"peft-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(out, save_embedding_layers=save_embedding_layers)
        return out

    return made


def _stated(folder: Path, **changes: Any) -> Path:
    path = folder / PEFT_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def _imported(folder: Path, tmp_path: Path) -> Path:
    """What is published of `folder`, once it was read and compared."""
    clean = tmp_path / "clean"
    clean.mkdir()
    source = copied(folder, tmp_path / "copy", max_rank=32, max_bytes=1 << 30)
    given = read_given(source, BASE)
    write_plain(source, clean)
    require_same_reading(given, with_adapter(BASE, clean, torch.float32), [PROBE])
    return clean


@pytest.fixture(autouse=True)
def _copy(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"exclude_modules": r".*layers\.0\..*"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.3},
    ],
)
def test_what_peft_reads_is_what_is_published(
    make: Make, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = make(**settings)
    clean = _imported(folder, tmp_path)
    tokens = torch.tensor([[5, 9, 40, 11]])
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(base, str(folder))(input_ids=tokens).logits
        ours = with_adapter(BASE, clean, torch.float32)(input_ids=tokens).logits
    assert torch.allclose(theirs, ours, atol=1e-5)
    # Nothing is left that an engine would overlook.
    stated = json.loads((clean / PEFT_CONFIG).read_text())
    assert not stated.keys() & {"exclude_modules", "layers_to_transform", "layers_pattern"}
    modules = {name.partition(".lora_")[0] for name in load_file(clean / WEIGHTS)}
    targets = stated["target_modules"]
    if isinstance(targets, list):
        assert all(module.endswith(tuple(targets)) for module in modules)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"kasa_config": {"beta": 1.0}}, "kasa_config"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"peft_type": "ADALORA"}, "peft_type"),
        ({"of_a_later_version": 7}, "of_a_later_version"),
    ],
)
def test_what_changes_the_meaning_is_refused_by_its_name(
    make: Make, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    folder = _stated(make(), **changes)
    with pytest.raises(ArtifactError, match=field) as caught:
        _imported(folder, tmp_path)
    assert "\n" not in str(caught.value)


def test_fields_of_a_later_version_that_say_nothing_pass(make: Make, tmp_path: Path) -> None:
    folder = _stated(make(), new_list=[], new_flag=False, new_thing=None, revision="main")
    _imported(folder, tmp_path)


def test_base_weights_beside_an_adapted_head_have_to_be_the_bases(
    make: Make, tmp_path: Path
) -> None:
    folder = make(target_modules=["q_proj", "lm_head"], save_embedding_layers=True)
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if name.endswith("lm_head.base_layer.weight"))
    clean = _imported(folder, tmp_path)
    assert name not in load_file(clean / WEIGHTS)
    save_file({**weights, name: weights[name] + 1}, folder / WEIGHTS)
    shutil.rmtree(clean)
    shutil.rmtree(tmp_path / "copy" / "given")
    with pytest.raises(ArtifactError, match=r"lm_head\.base_layer\.weight"):
        _imported(folder, tmp_path)


def _with_tensor(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        path = folder / WEIGHTS
        save_file({**load_file(path), name: torch.ones(shape)}, path)

    return add


_LAYER = "base_model.model.model.layers.0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            _with_tensor(
                f"{_LAYER}.mlp.up_proj.weight",
                (_SHAPE["intermediate_size"], _SHAPE["hidden_size"]),
            ),
            "without a place: .*up_proj",
        ),
        (_with_tensor(f"{_LAYER}.self_attn.q_proj.lora_B.bias", (4,)), "lora_bias"),
        (_with_tensor(f"{_LAYER}.self_attn.q_proj.lora_magnitude_vector", (4,)), "use_dora"),
        (
            _with_tensor("base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight", (4, 8)),
            "without a place|beside it",
        ),
    ],
)
def test_a_tensor_that_would_be_overlooked_is_named(
    make: Make, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    folder = make()
    change(folder)
    with pytest.raises(ArtifactError, match=words):
        _imported(folder, tmp_path)


def test_a_copy_that_says_something_else_is_noticed(make: Make, tmp_path: Path) -> None:
    """Whatever makes the difference: the comparison is of what the models say."""
    source = copied(make(), tmp_path / "copy", max_rank=32, max_bytes=1 << 30)
    given = read_given(source, BASE)
    clean = tmp_path / "other"
    clean.mkdir()
    write_plain(source, clean)
    _stated(clean, lora_alpha=16)
    with pytest.raises(ArtifactError, match="nats a token from what would be served"):
        require_same_reading(given, with_adapter(BASE, clean, torch.float32), [PROBE])


def test_links_are_followed_in_a_hugging_face_cache_only(make: Make, tmp_path: Path) -> None:
    folder = make()
    repo = tmp_path / "models--acme--care"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, name in enumerate((WEIGHTS, PEFT_CONFIG)):
        blob = repo / "blobs" / f"{number:064x}"
        shutil.copy(folder / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    _imported(snapshot, tmp_path)
    shutil.rmtree(tmp_path / "copy" / "given")
    elsewhere = tmp_path / "linked"
    elsewhere.mkdir()
    for name in (WEIGHTS, PEFT_CONFIG):
        (elsewhere / name).symlink_to(folder / name)
    with pytest.raises(ArtifactError, match="is a link to"):
        copied(elsewhere, tmp_path / "copy", max_rank=32, max_bytes=1 << 30)


def test_a_shape_that_does_not_fit_is_named_with_its_tensor(make: Make, tmp_path: Path) -> None:
    folder = make()
    path = folder / WEIGHTS
    wide = {
        name: torch.ones(4, 999) if "lora_A" in name else value
        for name, value in load_file(path).items()
    }
    save_file(wide, path)
    with pytest.raises(ArtifactError, match=r"size mismatch for .*lora_A.* \(and \d+ more\)"):
        _imported(folder, tmp_path)
