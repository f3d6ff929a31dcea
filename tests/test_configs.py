"""Every shipped configuration loads, and nothing unknown hides among them."""

from pathlib import Path

import pytest

from cluster.budget.prices import PriceBook
from cluster.config import ConfigModel, load
from cluster.demo.config import DemoConfig
from cluster.records.gate import GateRules
from cluster.rollout.plan import RolloutPlan
from data_jobs.config import DatasetConfig, ImportConfig
from serve_app.config import ServeConfig
from tests.conftest import REPOSITORY
from train_jobs.config import AdoptConfig, TrainConfig

SCHEMAS: dict[str, type[ConfigModel]] = {
    "local/demo.yaml": DemoConfig,
    "serve/local.yaml": ServeConfig,
    "serve/cluster.yaml": ServeConfig,
    "serve/bench.yaml": ServeConfig,
    "train/local.yaml": TrainConfig,
    "train/cluster.yaml": TrainConfig,
    "train/adopt.yaml": AdoptConfig,
    "data/import.yaml": ImportConfig,
    "data/dataset.yaml": DatasetConfig,
    "gate/understanding.yaml": GateRules,
    "rollout/canary.yaml": RolloutPlan,
    "prices/example.yaml": PriceBook,
}


def test_every_file_has_a_schema() -> None:
    folder = REPOSITORY / "configs"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    assert found == set(SCHEMAS)
    assert not [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".yaml", ".md")]


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_loads(name: str) -> None:
    load(SCHEMAS[name], REPOSITORY / "configs" / name)


def test_what_the_demo_names_exists() -> None:
    demo = load(DemoConfig, REPOSITORY / "configs" / "local" / "demo.yaml")
    for path in (demo.serve, demo.train, demo.data, demo.base_model.path):
        assert (REPOSITORY / path).exists(), path


def test_the_smoke_configs_load() -> None:
    folder = Path(__file__).parent / "integration" / "smoke"
    load(DemoConfig, folder / "demo.yaml")
    load(TrainConfig, folder / "train.yaml")
    load(ImportConfig, folder / "import.yaml")
