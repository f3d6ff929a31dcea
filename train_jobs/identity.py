"""Which run owns a run folder: a run resumes from what it left there, and no other may use it.

Ray Train takes the latest checkpoint in a run's folder for its own, whatever was trained there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cluster.errors import DataError
from cluster.storage import write_atomic
from train_jobs.config import TrainConfig

_FILE = "identity.json"
#: Settings that change nothing about what is fitted; a run may resume with others.
_WITHOUT = {
    *("run_id", "storage", "out", "heldout", "previous", "previous_label"),
    *("evaluation", "tracking", "checkpoints"),
}


def claim(config: TrainConfig, dataset_digest: str) -> None:
    """Make the folder of `config.run_id` this run's, which fits the dataset with this digest.

    Raises:
        DataError: another run has used it.
    """
    folder = Path(config.storage) / config.run_id
    mine = _identity(config, dataset_digest)
    try:
        theirs = (folder / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            theirs = ""
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / _FILE, mine)
            return
    if theirs != mine:
        raise DataError(
            f"run {config.run_id} in {config.storage} was of other data or settings: "
            "choose another run_id"
        )


def _identity(config: TrainConfig, dataset_digest: str) -> str:
    settings = config.model_dump(mode="json", exclude=_WITHOUT)
    document = json.dumps({**settings, "dataset": dataset_digest}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()
