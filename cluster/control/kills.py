"""The kill switch's memory: what is off is off, whether or not that can be recorded yet.

Owns what could not be written, such as to a full disk, and writes it later. It tells nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cluster.errors import ConflictError
from cluster.registry import access

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kill:
    reason: str
    actor: str
    at: float


class Kills:
    """`change` opens a transaction whose events are chained."""

    def __init__(self, change: Callable[[], AbstractContextManager[Session]]) -> None:
        self._change = change
        self._unrecorded: dict[str, _Kill] = {}

    @property
    def unrecorded(self) -> frozenset[str]:
        """Adapters that are off, and that a restart would forget to be."""
        return frozenset(self._unrecorded)

    def record(self, name: str, reason: str, *, actor: str, now: float) -> bool:
        """Switch `name` off; whether that is on record.

        Raises:
            ConflictError: there is no such adapter.
        """
        self._unrecorded[name] = _Kill(reason, actor, now)
        return self._write(name)

    def catch_up(self) -> bool:
        """Record what could not be; whether all is on record."""
        for name in list(self._unrecorded):
            try:
                self._write(name)
            except ConflictError:  # when it was switched off nobody could say that it is none
                logger.warning("%s was switched off and is no adapter", name)
        return not self._unrecorded

    def _write(self, name: str) -> bool:
        kill = self._unrecorded[name]
        try:
            with self._change() as tx:
                access.kill(tx, name, kill.reason, actor=kill.actor, now=kill.at)
        except ConflictError:
            del self._unrecorded[name]
            raise
        except (OSError, SQLAlchemyError):
            logger.exception("%s is off, which could not be recorded; trying again", name)
            return False
        del self._unrecorded[name]
        return True
