"""Hooks of a training run: what watches the loop, and never changes what it computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One optimiser step; steps are counted over the whole run."""

    number: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Epoch:
    """One finished pass over this worker's rows."""

    epoch: int
    """From 1."""
    epochs: int
    loss: float
    """Mean over the epoch's steps."""
    step: int
    rows_per_s: float
    """Of all workers together."""
    too_long: int
    """Rows of this worker that were cut, an epoch."""


class Hook(Protocol):
    """Called on every rank, in order; an error of a hook fails the run."""

    def on_step(self, step: Step) -> None:
        """A step is done."""

    def on_epoch(self, epoch: Epoch) -> None:
        """An epoch is done, before it is reported and its checkpoint kept."""

    def on_error(self, error: BaseException) -> None:
        """The run fails with `error`, which is raised after this."""

    def close(self) -> None:
        """The run is over, however it ended."""


class Hooks:
    """Several hooks as one."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = tuple(hooks)

    def on_step(self, step: Step) -> None:
        """See `Hook`."""
        for hook in self._hooks:
            hook.on_step(step)

    def on_epoch(self, epoch: Epoch) -> None:
        """See `Hook`."""
        for hook in self._hooks:
            hook.on_epoch(epoch)

    def on_error(self, error: BaseException) -> None:
        """See `Hook`."""
        for hook in self._hooks:
            hook.on_error(error)

    def close(self) -> None:
        """See `Hook`."""
        for hook in self._hooks:
            hook.close()
