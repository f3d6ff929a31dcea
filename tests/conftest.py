"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cluster import adapters, storage
from cluster.records.adapter import AdapterManifest, AdapterRecord, GoldenProbe
from cluster.records.evaluation import EvaluationReport
from cluster.types import AdapterVersion, VersionState
from tests.fakes.evaluations import report
from tests.tiers import TIERS, tier_of

# How long an example takes says what else the machine does.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "cluster/models/headrace-mini"


def publish_adapter(
    folder: Path,
    name: str = "inventory",
    version: int = 1,
    evaluation: EvaluationReport | None = None,
    **changes: object,
) -> Path:
    """Publish a small but valid adapter directory below `folder`; its path."""
    manifest = AdapterManifest(
        name=name,
        version=version,
        base_model="headrace-mini",
        base_digest="0" * 64,
        rank=8,
        dataset=f"{name}@{version}",
        dataset_digest="1" * 64,
        run_id="run",
        seconds=1.0,
        golden=(GoldenProbe(prompt_token_ids=(1, 2), target_token_ids=(3,), logprobs=(-0.1,)),),
        evaluation=evaluation or report(),
    ).model_copy(update=changes)
    final = folder / "adapters" / name / str(version)
    staged = storage.staging(final)
    tensors = {
        "q.lora_A.weight": {"dtype": "F32", "shape": [8, 1], "data_offsets": [0, 32]},
        "q.lora_B.weight": {"dtype": "F32", "shape": [1, 8], "data_offsets": [32, 64]},
    }
    header = json.dumps(tensors).encode()
    (staged / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"\0" * 64
    )
    (staged / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    (staged / "headrace.json").write_text(manifest.model_dump_json())
    storage.publish(staged, final)
    return final


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, help="the tests of one tier: see tests/tiers.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules of other tiers are not even imported: some load PyTorch, which takes seconds."""
    tier = config.getoption("--tier")
    if tier is None or not collection_path.name.startswith("test_"):
        return None
    return True if tier_of(collection_path) != tier else None


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Publishes a small but valid adapter directory and returns its path."""
    return partial(publish_adapter, tmp_path)


@pytest.fixture
def make_record(tmp_path: Path) -> Callable[[str, int], AdapterRecord]:
    """Publishes an adapter of the shipped base model; returns it as the registry has it."""
    # Torch and PEFT take seconds to import, and few tests need them.
    from serve_app.bench.versions import Maker

    def make(name: str, version: int) -> AdapterRecord:
        Maker(MODEL).publish(name, version, 7, tmp_path / "versions")
        path = tmp_path / "versions" / name / str(version)
        return AdapterRecord(
            AdapterVersion(name, version),
            1,
            VersionState.LIVE,
            str(path),
            storage.require_stable(path),
            "",
            "",
            adapters.inspect(path, max_rank=8),
        )

    return make
