"""The kill switch's memory: what is off is off, whether or not that can be recorded yet.

Owns what could not be written, such as to a full disk, and writes it later. It tells nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from cluster.errors import ConflictError
from cluster.registry import access

logger = logging.getLogger(__name__)

#: Until it is tried again to record one, and what that grows to: each try may leave an entry in the
#: audit chain and nothing in the registry.
_FIRST_S, _LONGEST_S = 1.0, 60.0


@dataclass
class _Kill:
    reason: str
    actor: str
    at: float
    wait_s: float = _FIRST_S
    next: float = 0.0


class Kills:
    """`change` opens a transaction whose events are chained."""

    def __init__(self, change: Callable[[], AbstractContextManager[Session]]) -> None:
        self._change = change
        self._unrecorded: dict[str, _Kill] = {}

    @property
    def unrecorded(self) -> frozenset[str]:
        """Adapters that are off, and that a restart would forget to be."""
        return frozenset(self._unrecorded)

    def add(self, name: str, reason: str, *, actor: str, now: float) -> None:
        """From now on `name` is off; what no database takes of a text is left out of `reason`."""
        written = reason.replace("\0", "").encode("utf-8", "replace").decode()
        self._unrecorded[name] = _Kill(written, actor, now)

    def record(self, name: str, now: float) -> bool:
        """Write down that `name` is off, where that is not; whether it is on record."""
        kill = self._unrecorded.get(name)
        if kill is None:
            return True
        try:
            with self._change() as tx:
                access.kill(tx, name, kill.reason, actor=kill.actor, now=kill.at)
        except ConflictError:
            logger.warning("%s was switched off and is no adapter", name)
        except Exception:  # whatever the registry or the log met, it is off
            logger.exception("%s is off, which could not be recorded; trying again", name)
            kill.next, kill.wait_s = now + kill.wait_s, min(2 * kill.wait_s, _LONGEST_S)
            return False
        del self._unrecorded[name]
        return True

    def catch_up(self, now: float) -> None:
        """Write down what could not be, where it is time to try again."""
        for name, kill in list(self._unrecorded.items()):
            if kill.next <= now:
                self.record(name, now)
