"""`headrace up` serves a folder again only as it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load
from cluster.demo.config import DemoConfig
from cluster.errors import ConfigError, ConflictError
from cluster.launch import local as runtime
from cluster.launch.deployment import _require_same
from cluster.launch.local import LocalCluster
from cluster.launch.site import Site
from cluster.progress import ProgressReporter
from cluster.records.model import BaseModelInfo
from tests.conftest import REPOSITORY
from tests.fakes.control import ControlDouble

CONFIG = REPOSITORY / "configs" / "local" / "demo.yaml"
ONE = BaseModelInfo(name="one", path="/one", digest="1" * 64)
TWO = BaseModelInfo(name="two", path="/two", digest="2" * 64)


@dataclass
class Adapters:
    """What is asked of the control plane: its versions, and the base they stand on."""

    versions: list[str]
    base: BaseModelInfo

    async def listed(self) -> list[str]:
        return self.versions

    async def base_model(self) -> BaseModelInfo:
        return self.base


def _control(versions: list[str], base: BaseModelInfo) -> Any:
    return ControlDouble(adapters=Adapters(versions, base))


def test_another_base_model_is_refused_before_anything_is_retired() -> None:
    _require_same(_control(["care@1"], ONE), ONE)
    _require_same(_control([], ONE), TWO)
    with pytest.raises(ConflictError, match="stand on one"):
        _require_same(_control(["care@1"], ONE), TWO)


def test_a_folder_that_no_run_made_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"router is missing.*scripts/demo"):
        Site.existing(load(DemoConfig, CONFIG), tmp_path, ProgressReporter())
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_run_finds_its_folder_as_it_was_left(tmp_path: Path) -> None:
    for part in ("router", "index"):
        (tmp_path / "workload" / part).mkdir(parents=True)
    (tmp_path / "registry.db").write_bytes(b"kept")
    site = Site.existing(load(DemoConfig, CONFIG), tmp_path, ProgressReporter())
    assert (site.workdir / "registry.db").read_bytes() == b"kept"


def test_a_cluster_that_ended_without_down_has_died(
    tmp_path: Path,
) -> None:
    assert not runtime.died(tmp_path)
    # The process id is another program's by now, as after a restart of the machine.
    gone = LocalCluster("127.0.0.1:1", "http://127.0.0.1:2", os.getpid(), "token", 3)
    (tmp_path / "runtime.json").write_text(json.dumps(asdict(gone)))
    assert runtime.running(tmp_path) is None
    assert runtime.died(tmp_path)
    assert not runtime.stop(tmp_path)
    assert not runtime.died(tmp_path)
