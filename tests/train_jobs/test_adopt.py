"""Adapters from elsewhere: checked before they are loaded, proved by ours, judged by ours."""

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

from cluster import adapters
from cluster.base_models import describe
from cluster.bundle import signing
from cluster.bundle.export import Source, export
from cluster.config import BaseModelRef
from cluster.errors import ArtifactError, ConfigError, HeadraceError
from cluster.records.adapter import AdapterRecord
from cluster.workload import TurnRecord, write_turns
from tests.conftest import MODEL
from train_jobs.adopt import adopt
from train_jobs.config import AdoptConfig, EvalConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT itself saves: nothing of ours in it."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    out = tmp_path_factory.mktemp("foreign") / "peft"
    model.save_pretrained(out)
    return out


@pytest.fixture
def foreign(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "foreign"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., AdoptConfig]:
    heldout = tmp_path / "heldout.jsonl"
    write_turns(
        heldout,
        [
            TurnRecord(id=str(n), domain="care", text=f"where is order {n}", intent="x", slots={})
            for n in range(6)
        ],
    )

    def make(source: Path, **more: Any) -> AdoptConfig:
        settings = {
            "source": str(source),
            "adapter": "care",
            "tenant": "acme",
            "version": 3,
            "run_id": "import-care-3",
            "base_model": BaseModelRef(path=str(MODEL), dtype="float32"),
            "heldout": str(heldout),
            "out": str(tmp_path / "adapters"),
            "storage": str(tmp_path / "runs"),
            "evaluation": EvalConfig(max_new_tokens=8, golden_probes=2),
            "max_rank": 32,
            **more,
        }
        return AdoptConfig.model_validate(settings)

    return make


def test_a_foreign_adapter_gets_its_proofs_here(
    foreign: Path, config: Callable[..., AdoptConfig]
) -> None:
    (foreign / "README.md").write_text("theirs")
    (foreign / "training_args.bin").write_bytes(b"a pickle that nobody opens")
    path = adopt(config(foreign))
    manifest = adapters.inspect(path, max_rank=32)
    assert (str(manifest.id), manifest.rank, manifest.seconds) == ("care@3", 4, 0.0)
    assert manifest.evaluation.headline.rows == 6
    assert len(manifest.golden) == 2
    for probe in manifest.golden:
        assert len(probe.logprobs) == len(probe.target_token_ids)
        assert len(probe.prompt_logprobs) == len(probe.prompt_token_ids) - 1
        assert all(value <= 0 for value in (*probe.logprobs, *probe.prompt_logprobs))
    assert {file.name for file in path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "headrace.json",
        "STABLE",
    }
    ours, theirs = load_file(path / adapters.WEIGHTS), load_file(foreign / adapters.WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_pattern_of_modules_means_what_it_matches(
    foreign: Path, config: Callable[..., AdoptConfig]
) -> None:
    _config(target_modules=r".*self_attn\.(q|v)_proj")(foreign)
    path = adopt(config(foreign))
    stated = json.loads((path / adapters.PEFT_CONFIG).read_text())["target_modules"]
    assert "model.layers.0.self_attn.q_proj" in stated
    recipe = adapters.inspect(path, max_rank=32).recipe
    assert recipe["imported from"] == "a PEFT folder of unknown origin"


def test_a_pattern_that_takes_for_ever_is_refused_by_its_field(
    foreign: Path, config: Callable[..., AdoptConfig]
) -> None:
    _config(target_modules="(([a-z_.0-9])+)+!")(foreign)
    with pytest.raises(ArtifactError, match="target_modules: the pattern takes over"):
        adopt(config(foreign))


def test_what_is_larger_than_may_be_is_not_read(
    foreign: Path, config: Callable[..., AdoptConfig]
) -> None:
    with (foreign / adapters.WEIGHTS).open("ab") as weights:
        weights.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="at most"):
        adopt(config(foreign))


@pytest.mark.parametrize("field", ["adapter", "tenant"])
def test_names_are_checked_before_anything_is_done(
    foreign: Path, config: Callable[..., AdoptConfig], field: str
) -> None:
    with pytest.raises(ValueError, match="not a valid name"):
        config(foreign, **{field: "Acme Corp"})


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Any:
    def alter(folder: Path) -> None:
        path = folder / adapters.WEIGHTS
        save_file(change(load_file(path)), path)

    return alter


def _pickle(folder: Path) -> None:
    (folder / adapters.WEIGHTS).rename(folder / "adapter_model.bin")


def _nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value * float("nan") for name, value in tensors.items()}


def _one_less(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items())[1:])


def _stranger(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "base_model.model.lm_tail.lora_A.weight": torch.ones(4, 8)}


def _wide(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.ones(4, 999) if "lora_A" in name else value for name, value in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_pickle, "safetensors"),
        (_config(peft_type="LOHA"), "peft_type"),
        (_config(use_dora=True), "DoRA"),
        (_config(modules_to_save=["lm_head"]), "modules_to_save"),
        (_config(bias="all"), "bias"),
        (_config(r=64), "rank"),
        (_config(r=8), "rank"),
        (_config(target_modules=["nothing_here"]), "does not fit"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "cannot be served"),
        (_weights(_nan), "finite"),
        (_weights(_one_less), "not those of the base model"),
        (_weights(_stranger), "not those of the base model"),
        (_weights(_wide), "does not fit"),
    ],
)
def test_what_cannot_be_served_is_refused(
    foreign: Path,
    config: Callable[..., AdoptConfig],
    change: Callable[[Path], object],
    complaint: str,
) -> None:
    change(foreign)
    wanted = config(foreign)
    with pytest.raises(HeadraceError, match=complaint):
        adopt(wanted)
    assert not (Path(wanted.out) / "care" / "3").exists()


def test_a_foreign_adapter_needs_something_to_be_judged_on(
    foreign: Path, config: Callable[..., AdoptConfig]
) -> None:
    with pytest.raises(ConfigError, match="--heldout"):
        adopt(config(foreign, heldout=None))


def test_a_bundle_comes_back_as_it_left(
    tmp_path: Path,
    config: Callable[..., AdoptConfig],
    make_record: Callable[[str, int], AdapterRecord],
) -> None:
    record = make_record("care", 2)
    key = signing.own_key(tmp_path / "key.pem")
    bundle = export(
        Source(record, describe(MODEL), "# care@2\n"),
        tmp_path / "b",
        key,
        "float32",
        lambda _: None,
    )
    fingerprint = signing.fingerprint(signing.public_pem(key))
    with pytest.raises(ArtifactError, match="trust"):
        adopt(config(bundle, heldout=None))
    found = adapters.inspect(
        adopt(config(bundle, heldout=None, trusted=(fingerprint,))), max_rank=32
    )
    assert str(found.id) == "care@3"
    assert found.golden == record.manifest.golden
    assert found.dataset == record.manifest.dataset
    assert found.recipe["imported from"] == f"a bundle of care@2, signed by {fingerprint}"
    assert (found.evaluation.previous, found.evaluation.headline.wins) == (None, None)
    assert found.evaluation.headline.value == record.manifest.evaluation.headline.value
    measured = adapters.inspect(
        adopt(config(bundle, version=4, trusted=(fingerprint,))), max_rank=32
    )
    assert (measured.evaluation.headline.rows, measured.golden) == (6, record.manifest.golden)
