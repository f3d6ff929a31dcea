"""A run's folder belongs to one run: the one that resumes in it."""

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from train_jobs.config import TrainConfig
from train_jobs.identity import claim


def _config(folder: Path, **changes: Any) -> TrainConfig:
    settings = {
        "adapter": "care",
        "tenant": "acme",
        "version": 1,
        "run_id": "example",
        "base_model": {"path": "m"},
        "dataset": "d",
        "heldout": "h",
        "out": "o",
        "storage": str(folder / "runs"),
    }
    return TrainConfig.model_validate({**settings, **changes})


def test_a_run_resumes_in_its_folder_and_no_other_may_use_it(tmp_path: Path) -> None:
    claim(_config(tmp_path), "digest")
    claim(_config(tmp_path), "digest")
    claim(_config(tmp_path, checkpoints={"max_failures": 3}), "digest")
    for other in ({"version": 2}, {"learning_rate": 1e-4}):
        with pytest.raises(DataError, match="choose another run_id"):
            claim(_config(tmp_path, **other), "digest")
    with pytest.raises(DataError, match="choose another run_id"):
        claim(_config(tmp_path), "digest of other data")
    claim(_config(tmp_path, version=2, run_id="second"), "digest")


def test_a_folder_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "example" / "checkpoint_0").mkdir(parents=True)
    with pytest.raises(DataError, match="choose another run_id"):
        claim(_config(tmp_path), "digest")
