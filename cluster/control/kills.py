"""The kill switch's memory: what is off is off, whether or not that can be recorded yet.

Owns what could not be written, such as to a full disk, and writes it later. It tells nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from cluster.errors import ConflictError
from cluster.registry import access
from cluster.registry.remarks import remark

logger = logging.getLogger(__name__)

#: Until it is tried again to record one, and what that grows to: each try may leave an entry in the
#: audit chain and nothing in the registry.
_FIRST_S, _LONGEST_S = 1.0, 60.0


@dataclass(frozen=True)
class _Kill:
    reason: str
    actor: str
    at: float


@dataclass
class _Pending:
    """What is to be recorded of one adapter, and when that is tried again."""

    kills: list[_Kill] = field(default_factory=list)
    wait_s: float = _FIRST_S
    next: float = 0.0


class Kills:
    """`change` opens a transaction whose events are chained."""

    def __init__(self, change: Callable[[], AbstractContextManager[Session]]) -> None:
        self._change = change
        self._pending: dict[str, _Pending] = {}

    @property
    def unrecorded(self) -> frozenset[str]:
        """Adapters that are off, and that a restart would forget to be."""
        return frozenset(self._pending)

    def add(self, name: str, reason: str, *, actor: str, now: float) -> None:
        """From now on `name` is off; what no database takes of a text is left out."""
        kill = _Kill(remark(_storable(reason)), _storable(actor), now)
        self._pending.setdefault(name, _Pending()).kills.append(kill)

    def record(self, name: str, now: float) -> bool:
        """Write down that `name` is off, where that is not; whether it is on record."""
        pending = self._pending.get(name)
        if pending is None:
            return True
        try:
            with self._change() as tx:
                for kill in pending.kills:
                    access.kill(tx, name, kill.reason, actor=kill.actor, now=kill.at)
        except ConflictError:
            logger.warning("%s was switched off and is no adapter", name)
        except Exception:  # whatever the registry or the log met, it is off
            logger.exception("%s is off, which could not be recorded; trying again", name)
            pending.next = now + pending.wait_s
            pending.wait_s = min(2 * pending.wait_s, _LONGEST_S)
            return False
        del self._pending[name]
        return True

    def catch_up(self, now: float) -> None:
        """Write down what could not be, where it is time to try again."""
        for name, pending in list(self._pending.items()):
            if pending.next <= now and not self.record(name, now):
                return  # nor can the others be; each may wait for a database that does not answer


def _storable(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()
