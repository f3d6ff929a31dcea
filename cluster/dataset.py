"""Published dataset versions: where their rows and their manifest are."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from cluster import storage
from cluster.errors import DataError, one_line
from cluster.records.dataset import DatasetManifest

MANIFEST = "manifest.json"
ROWS = "rows"


def read_manifest(path: Path) -> DatasetManifest:
    """The manifest of the published dataset at `path`, its content digest checked.

    Raises:
        DataError: the manifest is missing or malformed.
        ArtifactError: the directory is unpublished or altered.
    """
    storage.require_stable(path)
    try:
        return DatasetManifest.model_validate(storage.read_json(path / MANIFEST))
    except ValidationError as error:
        raise DataError(f"{path / MANIFEST} is malformed: {one_line(error)}") from error
