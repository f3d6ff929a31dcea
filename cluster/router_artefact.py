"""The router's file format: arrays in `.npz` without pickle, class names in JSON.

Written by the data jobs, read by the routing stage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import DataError

_ARRAYS = "router.npz"
_CLASSES = "classes.json"


@dataclass(frozen=True)
class RouterArtefact:
    """Weights of shape (classes, d), bias (classes,), anchors (k, d), and who each class is."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    anchors: NDArray[np.float32]
    classes: list[tuple[str, str]]


def write(artefact: RouterArtefact, path: Path) -> str:
    """Publish `artefact` at `path`; returns its digest."""
    with storage.publishing(path) as staged:
        np.savez(
            staged / _ARRAYS, weights=artefact.weights, bias=artefact.bias, anchors=artefact.anchors
        )
        (staged / _CLASSES).write_text(json.dumps(artefact.classes), encoding="utf-8")
    return storage.require_stable(path)


def read(path: Path) -> RouterArtefact:
    """The published artefact at `path`.

    Raises:
        DataError: its parts do not fit together.
    """
    storage.require_stable(path)
    classes = [(str(a), str(i)) for a, i in json.loads((path / _CLASSES).read_text("utf-8"))]
    with np.load(path / _ARRAYS, allow_pickle=False) as arrays:
        artefact = RouterArtefact(
            arrays["weights"].astype(np.float32),
            arrays["bias"].astype(np.float32),
            arrays["anchors"].astype(np.float32),
            classes,
        )
    if artefact.weights.shape[0] != len(classes) or artefact.bias.shape != (len(classes),):
        raise DataError(f"{path}: {len(classes)} classes for weights {artefact.weights.shape}")
    return artefact
