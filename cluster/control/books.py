"""The control plane's book-keeping: what reads and writes the registry and moves no adapter.

Keys, limits, prices, usage, datasets, labels and the list of versions. What has to reach the
gateways at once goes through `_keys_changed`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from cluster.audit import CONTROL, ChainWriter, Head, Place
from cluster.audit import writers as log_writers
from cluster.budget.exchange import Reservation, Settlement
from cluster.budget.ledger import Refusal, Room
from cluster.budget.limits import Limits, key_scope
from cluster.budget.prices import PriceBook
from cluster.control.budgets import Till
from cluster.control.traffic import Traffic
from cluster.dataset import DatasetManifest, read_manifest
from cluster.registry import (
    bases,
    card,
    events,
    keys,
    labels,
    limits,
    tenants,
    usage,
    versions,
    writers,
)
from cluster.registry.bases import BaseModelInfo
from cluster.registry.db import open_database
from cluster.registry.versions import AdapterRecord
from cluster.storage import require_stable
from cluster.types import AdapterVersion, Principal


class Books(ABC):
    """The registry, its audit chain and the till."""

    def __init__(self, database: str, audit: Path) -> None:
        """`audit` is the folder of the audit log; what is changed here is chained below it."""
        self._engine = open_database(database)
        self._chain = ChainWriter(audit / CONTROL, f"control-{uuid.uuid4().hex}")
        with Session(self._engine) as tx, tx.begin():
            if not writers.heads(tx, changes=True):
                # The first start of this registry, or the first that keeps writers: what there is
                # already is of before.
                for folder, changes in ((audit, False), (audit / CONTROL, True)):
                    for writer in log_writers(folder):
                        writers.register(tx, writer, changes=changes, now=time.time())
            writers.register(tx, self._chain.writer, changes=True, now=time.time())
        self._audit = audit
        self._till = Till(lambda: Session(self._engine))
        self._traffic = Traffic()
        self._read: dict[str, Place] = {}
        self._settling = asyncio.Lock()

    def _change(self) -> AbstractContextManager[Session]:
        return events.recorded(self._engine, self._chain)

    @abstractmethod
    def _keys_changed(self) -> None:
        """Whoever remembers keys has to forget them."""

    # -- tenants and keys -------------------------------------------------------------------

    async def issue_key(
        self, request: keys.KeyRequest, actor: str, by_operator: bool = False
    ) -> keys.IssuedKey:
        """Create an API key."""
        with self._change() as tx:
            issued = keys.issue(tx, request, actor=actor, now=time.time(), by_operator=by_operator)
        if request.limits.bounded:
            self._till.reopen(key_scope(issued.key_id))
        return issued

    async def revoke_key(self, key_id: str, actor: str) -> None:
        """End a key, on every gateway at once."""
        with self._change() as tx:
            keys.revoke(tx, key_id, actor=actor, now=time.time())
        self._till.reopen(key_scope(key_id))
        self._keys_changed()

    async def change_key(
        self, key_id: str, wanted: keys.KeyChange, actor: str, by_operator: bool = False
    ) -> None:
        """Give a key another alias, other adapters or another end, on every gateway at once."""
        with self._change() as tx:
            keys.change(tx, key_id, wanted, actor=actor, now=time.time(), by_operator=by_operator)
        self._keys_changed()

    async def set_limits(
        self, scope: str, bounds: Limits, actor: str, by_operator: bool = False
    ) -> None:
        """Bound what a tenant or a key may use, or no longer."""
        with self._change() as tx:
            limits.put(tx, scope, bounds, actor=actor, now=time.time())
            kind, _, name = scope.partition(":")
            if by_operator and kind == "key":
                keys.hold_limits(tx, name, bounds)
        self._till.reopen(scope)
        self._keys_changed()

    async def limits_of(self, scope: str) -> Limits:
        """The limits of one tenant or key."""
        with Session(self._engine) as tx:
            found = limits.get(tx, scope)
        return found[0] if found is not None else Limits()

    async def limits(self) -> dict[str, Limits]:
        """Every bounded scope and its limits."""
        with Session(self._engine) as tx:
            return {scope: bounds for scope, (bounds, _) in limits.listed(tx).items()}

    async def spend(
        self, settlements: list[Settlement], reservations: list[Reservation]
    ) -> list[Room | Refusal]:
        """Settle what gateways' requests have used, and reserve what the next may use."""
        return self._till.exchange(settlements, reservations)

    async def set_prices(self, book: PriceBook, actor: str) -> None:
        """Put a price book in force."""
        with self._change() as tx:
            usage.set_prices(tx, book, actor=actor, now=time.time())
        self._till.reprice()

    async def suspend_tenant(self, tenant: str, suspended: bool, actor: str) -> None:
        """Let none of a tenant's keys through, or let them through again."""
        with self._change() as tx:
            tenants.suspend(tx, tenant, suspended=suspended, actor=actor, now=time.time())
        self._keys_changed()

    async def resolve_key(self, digest: str) -> Principal | None:
        """The principal behind a key's digest."""
        with Session(self._engine) as tx:
            return keys.resolve(tx, digest, time.time())

    async def listed_keys(self, tenant: str | None) -> list[keys.KeyRecord]:
        """What may be known of every key, or of a tenant's."""
        with Session(self._engine) as tx:
            return keys.listed(tx, tenant)

    async def newest_events(self, limit: int) -> list[dict[str, Any]]:
        """The newest changes, newest first."""
        with Session(self._engine) as tx:
            return events.listed(tx, limit)

    # -- versions ---------------------------------------------------------------------------

    async def next_version(self, name: str) -> int:
        """The number the next version of `name` gets."""
        with Session(self._engine) as tx:
            return versions.next_version(tx, name)

    async def base_model(self, digest: str | None) -> BaseModelInfo:
        """The base model with `digest`; without, the one that serves."""
        with Session(self._engine) as tx:
            wanted = bases.serving(tx) if digest is None else digest
            return bases.get(tx, wanted or "")

    async def adapter_version(self, version: AdapterVersion) -> AdapterRecord:
        """One registered version."""
        with Session(self._engine) as tx:
            return versions.get(tx, version)

    async def live_version(self, adapter: str) -> AdapterRecord | None:
        """The version of `adapter` that is live, or would be were it not switched off: what
        replaces it is compared with it."""
        with Session(self._engine) as tx:
            found = versions.live_ids(tx).get(adapter)
            return versions.get(tx, found) if found is not None else None

    async def adapter_versions(self) -> list[AdapterRecord]:
        """Every registered version."""

        def listed() -> list[AdapterRecord]:
            with Session(self._engine) as tx:
                return versions.listed(tx)

        # There may be thousands, with all that proves them: in a thread, nobody waits for it.
        return await asyncio.to_thread(listed)

    # -- usage ------------------------------------------------------------------------------

    async def register_writer(self, writer: str) -> None:
        """Enter a writer of the audit log, before it writes: no other is believed."""
        with Session(self._engine) as tx, tx.begin():
            writers.register(tx, writer, changes=False, now=time.time())

    async def tell_use(self, writer: str, head: Head, uses: list[usage.TokenUse]) -> int:
        """Enter what was used, and how far the writer that tells of it has come; returns how much
        of it was new."""
        for use in uses:
            name = use.version.partition("@")[0]
            self._traffic.saw(name, use.requests + use.output_tokens, time.time())
        with Session(self._engine) as tx, tx.begin():
            writers.advance(tx, writer, head, now=time.time())
            return usage.tell(tx, uses)

    async def writers(self) -> tuple[dict[str, Head], dict[str, Head]]:
        """How far each writer of the audit log has come: of requests, and of changes."""
        with Session(self._engine) as tx:
            return writers.heads(tx, changes=False), writers.heads(tx, changes=True)

    async def bill(
        self,
        tenant: str,
        start: float,
        end: float,
        prices: PriceBook | None,
        adapters: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What a tenant used and what it costs, at the prices in force or at `prices`; with
        `adapters`, of those alone.

        All that is in the audit log by now is in it.

        Raises:
            ConflictError: there is no such tenant.
        """

        def reckon() -> dict[str, Any]:
            with Session(self._engine) as tx:
                tenants.require(tx, tenant)
                return usage.bill(tx, tenant, start, end, prices, adapters=adapters)

        # The log is read: in a thread, gateways' questions are answered meanwhile; one thread,
        # however many ask.
        async with self._settling:
            begin = sessionmaker(self._engine).begin
            await asyncio.to_thread(usage.settle, begin, self._audit, self._read)
        return await asyncio.to_thread(reckon)

    async def key_spend(self, key_id: str) -> float:
        """US dollars that a key has spent on tokens, as far as the meter knows by now: in the
        present period of its budget, where it has one."""

        def reckon() -> float:
            with Session(self._engine) as tx:
                now = time.time()
                since = limits.period_start(tx, key_scope(key_id), now)
                return usage.spent(tx, key_id, since, now + 1)

        # It may be long: in a thread, as a bill.
        return await asyncio.to_thread(reckon)

    async def exported(self, version: AdapterVersion, signed_by: str, actor: str) -> None:
        """Record that `version` left the cluster in a bundle."""
        with self._change() as tx:
            record = versions.get(tx, version)
            detail = {"digest": record.digest, "signed_by": signed_by}
            events.note(tx, "version.exported", str(version), detail, actor=actor, now=time.time())

    async def card(self, version: AdapterVersion, leaving: bool = False) -> str:
        """The model card of a version, as Markdown; of one that is `leaving` without who else
        reaches it."""
        with Session(self._engine) as tx:
            return card.write(tx, version, leaving=leaving)

    # -- datasets and labels ----------------------------------------------------------------

    async def register_dataset(self, path: str) -> DatasetManifest:
        """Register a published dataset version."""
        manifest = read_manifest(Path(path))
        # Every byte is read.
        digest = await asyncio.to_thread(require_stable, Path(path))
        with Session(self._engine) as tx, tx.begin():
            versions.register_dataset(tx, manifest, Path(path), digest, time.time())
        return manifest

    async def datasets(self) -> list[DatasetManifest]:
        """Every dataset version."""
        with Session(self._engine) as tx:
            return versions.datasets(tx)

    async def enqueue_labels(self, tasks: list[labels.LabelTask]) -> int:
        """Put traces before the experts; returns how many were new."""
        with Session(self._engine) as tx, tx.begin():
            return labels.enqueue(tx, tasks, time.time())

    async def claim_labels(
        self, tenant: str, annotator: str, limit: int, adapters: Sequence[str] = ()
    ) -> list[labels.LabelTask]:
        """Lease tasks to an annotator; with `adapters`, of what those answered only."""
        with Session(self._engine) as tx, tx.begin():
            return labels.claim(tx, tenant, annotator, limit, time.time(), adapters=adapters)

    async def submit_labels(self, tenant: str, given: list[labels.GivenLabel]) -> int:
        """Store experts' labels."""
        with Session(self._engine) as tx, tx.begin():
            now = time.time()
            accepted = labels.submit(tx, tenant, given, now)
            for label in given:
                usage.work(tx, usage.LABELS, label.trace_id, tenant=tenant, amount=1, at=now)
            return accepted

    async def labelled(self, tenant: str, adapter: str) -> list[dict[str, Any]]:
        """The labels given for one adapter."""
        with Session(self._engine) as tx:
            return labels.labelled(tx, tenant, adapter)

    async def label_counts(self, tenant: str) -> dict[str, int]:
        """The state of the label queue."""
        with Session(self._engine) as tx:
            return labels.counts(tx, tenant)
