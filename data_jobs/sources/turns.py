"""A labelled customer turn, and the workload made of turns that the demo replays."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.answer import Understanding
from cluster.records.dataset import Fault


@dataclass(frozen=True)
class LabelledTurn:
    """One turn with the annotation that came with it."""

    id: str
    domain: str
    text: str
    answer: Understanding


@dataclass
class Workload:
    """Turns of several domains, split as their source splits them."""

    name: str
    generated: bool
    """Whether the turns are ours, written by a generator."""
    licence: str
    """Of its texts."""
    train: dict[str, list[LabelledTurn]] = field(default_factory=dict)
    heldout: dict[str, list[LabelledTurn]] = field(default_factory=dict)
    documents: list[tuple[str, str]] = field(default_factory=list)
    """Title and text of the passages the context stage may retrieve."""
    broken: list[Fault] = field(default_factory=list)
