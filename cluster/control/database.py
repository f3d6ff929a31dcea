"""The registry as the services use it: its engine, transactions, and the chain of changes."""

from __future__ import annotations

import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from cluster.audit import CONTROL, ChainWriter
from cluster.audit import writers as log_writers
from cluster.registry import events, writers
from cluster.registry.db import open_database


class Database:
    """Opens transactions on the registry. One process owns it: the control plane's."""

    def __init__(self, url: str, audit: Path) -> None:
        """`audit` is the folder of the audit log; what is changed is chained below it."""
        self.engine = open_database(url)
        self.audit = audit
        self._chain = ChainWriter(audit / CONTROL, f"control-{uuid.uuid4().hex}")
        now = time.time()
        with self.write() as tx:
            if not writers.heads(tx, changes=True):
                # The first start of this registry, or the first version that keeps writers: the
                # writers whose logs exist are registered now.
                for folder, changes in ((audit, False), (audit / CONTROL, True)):
                    for writer in log_writers(folder):
                        writers.register(tx, writer, changes=changes, now=now)
            writers.register(tx, self._chain.writer, changes=True, now=now)

    def read(self) -> Session:
        """A session for reading."""
        return Session(self.engine)

    def write(self) -> AbstractContextManager[Session]:
        """A transaction whose changes are no events, such as metering."""
        return sessionmaker(self.engine).begin()

    def change(self) -> AbstractContextManager[Session]:
        """A transaction whose events are in the audit chain before it takes effect."""
        return events.recorded(self.engine, self._chain)

    def close(self) -> None:
        """Close the database's connections and the chain's files."""
        self.engine.dispose()
        self._chain.close()
