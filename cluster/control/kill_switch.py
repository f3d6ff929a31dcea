"""The kill switch's memory: disable first, persist later.

Owns the kills that could not be written, such as to a full disk, and retries them with back-off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from cluster.errors import NotFoundError
from cluster.records.remarks import remark
from cluster.registry import access

logger = logging.getLogger(__name__)

#: Back-off between tries, doubled up to its maximum: each try may leave an entry in the audit chain
#: and nothing in the registry.
_FIRST_S, _LONGEST_S = 1.0, 60.0


@dataclass(frozen=True)
class _Kill:
    reason: str
    actor: str
    at: float


@dataclass
class _Pending:
    """Kills of one adapter that are to be persisted, and when the next try is due."""

    kills: list[_Kill] = field(default_factory=list)
    wait_s: float = _FIRST_S
    next: float = 0.0


class KillSwitch:
    """Adapters that are off and not yet on record as such."""

    def __init__(self, change: Callable[[], AbstractContextManager[Session]]) -> None:
        """`change` opens a transaction whose events are in the audit chain."""
        self._change = change
        self._pending: dict[str, _Pending] = {}

    @property
    def unpersisted(self) -> frozenset[str]:
        """Adapters that are off, which a restart would forget."""
        return frozenset(self._pending)

    def add(self, name: str, reason: str, *, actor: str, now: float) -> None:
        """From now on `name` is off. What databases refuse, NUL and lone surrogates, is dropped."""
        kill = _Kill(remark(_storable(reason)), _storable(actor), now)
        self._pending.setdefault(name, _Pending()).kills.append(kill)

    def persist(self, name: str, now: float) -> bool:
        """Persist that `name` is off, unless that is done; whether it is on record."""
        pending = self._pending.get(name)
        if pending is None:
            return True
        try:
            with self._change() as tx:
                for kill in pending.kills:
                    access.kill(tx, name, kill.reason, actor=kill.actor, now=kill.at)
        except NotFoundError:
            logger.warning("%s was switched off and is no adapter", name)
        except Exception:  # whatever the registry or the log met, it is off
            logger.exception("%s is off, which could not be recorded; trying again", name)
            pending.next = now + pending.wait_s
            pending.wait_s = min(2 * pending.wait_s, _LONGEST_S)
            return False
        del self._pending[name]
        return True

    def retry(self, now: float) -> None:
        """Persist the kills whose next try is due."""
        for name, pending in list(self._pending.items()):
            if pending.next <= now and not self.persist(name, now):
                return  # nor can the others be; each may wait for a database that does not answer


def _storable(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()
