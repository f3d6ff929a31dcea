"""Builders of targets."""

from __future__ import annotations

from cluster.records.adapter import ServedAdapter
from cluster.records.model import ModelProfile, Target
from serve_app.generation.targets import CAPABILITIES, Targets


def targets(window: int = 512) -> Targets:
    """The targets of a gateway whose base model is called `base`."""
    return Targets("base", ModelProfile(window, CAPABILITIES))


def target(adapter: ServedAdapter | None = None) -> Target:
    """The target of `adapter`, or the base model."""
    return targets().base if adapter is None else Targets.of(adapter)
