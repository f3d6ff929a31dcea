"""The control plane actor: wires the registry, the gate and the swap, and serialises changes.

The only place besides `serve_app/graph.py` that constructs and connects. One process owns the
database connection, so that no request path ever waits on SQL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from cluster import adapters
from cluster.control import swap as swapping
from cluster.control.protocol import Fleet, RoutingTable, ServedAdapter, SwapReport
from cluster.dataset import DatasetManifest, read_manifest
from cluster.errors import ArtifactError, ConflictError
from cluster.registry import keys, labels, versions
from cluster.registry.db import open_database
from cluster.registry.versions import AdapterRecord
from cluster.rollout.gate import GateConfig, Verdict, judge
from cluster.storage import require_stable
from cluster.types import AdapterVersion, Principal, Role, VersionState


class ControlPlane:
    """The registry's single writer. Made into a named Ray actor by `cluster.runtime`."""

    def __init__(self, database: str, fleet: Fleet, max_rank: int) -> None:
        self._engine = open_database(database)
        self._fleet = fleet
        self._max_rank = max_rank
        self._changing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._preparing: dict[int, ServedAdapter] = {}
        with Session(self._engine) as tx:
            live = {name: _served(record) for name, record in versions.live(tx).items()}
        self._table = RoutingTable(1, live)

    # -- keys -------------------------------------------------------------------------------

    async def issue_key(
        self, tenant: str, roles: Sequence[Role], attributes: dict[str, str]
    ) -> str:
        """Create an API key and return its secret."""
        with Session(self._engine) as tx, tx.begin():
            return keys.issue(
                tx, tenant=tenant, roles=roles, attributes=attributes, now=time.time()
            )

    async def resolve_key(self, digest: str) -> Principal | None:
        """The principal behind a key's digest."""
        with Session(self._engine) as tx:
            return keys.resolve(tx, digest)

    # -- routing table ----------------------------------------------------------------------

    async def table(self) -> RoutingTable:
        """The present routing table."""
        return self._table.unproved()

    async def watch(self, generation: int, timeout_s: float) -> RoutingTable:
        """The table once it is newer than `generation`, or as it is after `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._table.generation > generation), timeout_s
                )
            except TimeoutError:
                pass
        return self._table.unproved()

    async def desired(self) -> list[ServedAdapter]:
        """What an engine replica must hold before it takes traffic."""
        return [*self._table.live.values(), *self._preparing.values()]

    # -- adapters ---------------------------------------------------------------------------

    async def next_version(self, name: str) -> int:
        """The number the next version of `name` gets."""
        with Session(self._engine) as tx:
            return versions.next_version(tx, name)

    async def register_candidate(self, path: str) -> AdapterVersion:
        """Check a published adapter directory and register it as a candidate."""
        manifest = adapters.inspect(Path(path), max_rank=self._max_rank)
        digest = require_stable(Path(path))
        with Session(self._engine) as tx, tx.begin():
            versions.register(tx, manifest, Path(path), digest, time.time())
        return manifest.id

    async def gate(self, version: AdapterVersion, config: GateConfig) -> Verdict:
        """Judge a candidate and record the verdict.

        Raises:
            ConflictError: the version is not a candidate, or was not compared with what is live.
        """
        with Session(self._engine) as tx, tx.begin():
            record = versions.get(tx, version)
            if record.state != VersionState.CANDIDATE:
                raise ConflictError(f"{version} is {record.state}, not a candidate")
            live = self._table.live.get(version.name)
            compared = record.manifest.evaluation.previous
            if compared != (live.label if live else None):
                raise ConflictError(
                    f"{version} was evaluated against {compared}, but "
                    f"{live.label if live else 'nothing'} is live: evaluate it again"
                )
            verdict = judge(record.manifest.evaluation, config)
            state = VersionState.PASSED if verdict.passed else VersionState.REJECTED
            versions.set_state(tx, version, state, verdict.reason, time.time())
        return verdict

    async def promote(self, version: AdapterVersion) -> SwapReport:
        """Swap a passed version in while the others keep serving.

        Raises:
            ConflictError: the version has not passed the gate.
            ArtifactError: its directory is not what was registered.
            SwapError: it was not proved on every replica.
        """
        async with self._changing:
            with Session(self._engine) as tx:
                record = versions.get(tx, version)
            if record.state != VersionState.PASSED:
                raise ConflictError(
                    f"{version} is {record.state}: only a passed version is promoted"
                )
            if require_stable(Path(record.path)) != record.digest:
                raise ArtifactError(f"{record.path} is not the directory that was registered")
            new, old = _served(record), self._table.live.get(version.name)
            self._preparing[new.int_id] = new
            try:
                report = await swapping.swap(self._fleet, new, old, lambda: self._flip(new, old))
            finally:
                self._preparing.pop(new.int_id, None)
            return report

    def _flip(self, new: ServedAdapter, old: ServedAdapter | None) -> None:
        now = time.time()
        with Session(self._engine) as tx, tx.begin():
            if old is not None:
                retired = AdapterVersion(old.name, old.version)
                versions.set_state(tx, retired, VersionState.RETIRED, f"by {new.label}", now)
            current = AdapterVersion(new.name, new.version)
            versions.set_state(tx, current, VersionState.LIVE, "promoted", now)
        self._table = RoutingTable(self._table.generation + 1, {**self._table.live, new.name: new})
        self._announcement = asyncio.ensure_future(self._announce())

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def adapter_versions(self) -> list[AdapterRecord]:
        """Every registered version."""
        with Session(self._engine) as tx:
            return versions.listed(tx)

    # -- datasets and labels ----------------------------------------------------------------

    async def register_dataset(self, path: str) -> DatasetManifest:
        """Register a published dataset version."""
        manifest = read_manifest(Path(path))
        with Session(self._engine) as tx, tx.begin():
            digest = require_stable(Path(path))
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

    async def claim_labels(self, annotator: str, limit: int) -> list[labels.LabelTask]:
        """Lease tasks to an annotator."""
        with Session(self._engine) as tx, tx.begin():
            return labels.claim(tx, annotator, limit, time.time())

    async def submit_labels(self, given: list[labels.GivenLabel]) -> int:
        """Store experts' labels."""
        with Session(self._engine) as tx, tx.begin():
            return labels.submit(tx, given, time.time())

    async def labelled(self, adapter: str) -> list[dict[str, Any]]:
        """The labels given for one adapter."""
        with Session(self._engine) as tx:
            return labels.labelled(tx, adapter)

    async def label_counts(self) -> dict[str, int]:
        """The state of the label queue."""
        with Session(self._engine) as tx:
            return labels.counts(tx)


def _served(record: AdapterRecord) -> ServedAdapter:
    return ServedAdapter(
        record.id.name,
        record.id.version,
        record.int_id,
        record.path,
        record.digest,
        record.manifest.golden,
    )
