"""Publishes a trained adapter: PEFT files, manifest, marker; registration is the caller's."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from cluster import storage
from cluster.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS
from cluster.errors import ArtifactError, HeadraceError, NotFoundError, UnavailableError
from cluster.records.adapter import AdapterManifest
from cluster.types import AdapterVersion

if TYPE_CHECKING:
    from cluster.control.client import ControlClient

logger = logging.getLogger(__name__)
#: Seconds between tries to register while the control plane restarts.
_AWAY_S = (1.0, 2.0, 4.0, 8.0, 16.0)


def check_weights(path: Path) -> None:
    """Every tensor is finite and some are not zero.

    Raises:
        ArtifactError: the training produced something that must not be served.
    """
    tensors = load_file(path)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ArtifactError(f"{path}: {len(broken)} tensors are not finite, first {broken[0]}")
    if not any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name):
        raise ArtifactError(f"{path}: every lora_B is zero, so the adapter changes nothing")


def register(
    control: ControlClient, path: Path, version: AdapterVersion, tenant: str
) -> AdapterVersion:
    """Register what was published as `version`; what is refused is gone again, and its number free.

    While the control plane is away, it is waited for.

    Raises:
        HeadraceError: the registry refuses it.
        UnavailableError: the control plane does not come back; what was published stays.
    """
    for wait_s in (*_AWAY_S, None):
        try:
            return control.do(control.adapters.register(str(path), tenant, control.name))
        except UnavailableError:
            if wait_s is None:
                raise
            logger.warning("the control plane is away: trying again in %g s", wait_s)
            time.sleep(wait_s)
        except (HeadraceError, ValueError):
            # It may have been done the time before, when no answer came.
            if _is_registered(control, path, version):
                return version
            shutil.rmtree(path)
            raise
    raise AssertionError("unreachable")


def _is_registered(control: ControlClient, path: Path, version: AdapterVersion) -> bool:
    try:
        return control.do(control.adapters.version(version)).path == str(path)
    except NotFoundError:
        return False


def publish_adapter(trained: Path, manifest: AdapterManifest, out: Path) -> Path:
    """Write `out/NAME/VERSION` atomically and return it."""
    check_weights(trained / WEIGHTS)
    final = storage.confined(out, manifest.name, str(manifest.version))
    config = json.loads((trained / PEFT_CONFIG).read_text(encoding="utf-8"))
    # The trainer's path means nothing to another machine; the base is known by name and digest.
    config["base_model_name_or_path"] = manifest.base_model
    with storage.publishing(final) as staged:
        shutil.copy(trained / WEIGHTS, staged / WEIGHTS)
        (staged / PEFT_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (staged / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return final
