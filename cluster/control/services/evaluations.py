"""The evaluation gate as a service: rules by adapter, set apart from the jobs they judge."""

from __future__ import annotations

import time

from cluster.control.database import Database
from cluster.errors import ConflictError
from cluster.records.gate import GateRules
from cluster.registry import gates, versions
from cluster.rollout.gate import Verdict, judge
from cluster.types import AdapterVersion, VersionState


class EvaluationService:
    """Implements `cluster.control.contracts.Evaluations`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_rules(self, adapter: str, rules: GateRules, by: str) -> None:
        with self._database.change() as tx:
            gates.put(tx, adapter, rules, actor=by, now=time.time())

    async def rules(self, adapter: str) -> GateRules:
        with self._database.read() as tx:
            return gates.get(tx, adapter)

    async def judge(self, version: AdapterVersion, by: str) -> Verdict:
        with self._database.change() as tx:
            record = versions.get(tx, version)
            if record.state != VersionState.CANDIDATE:
                raise ConflictError(f"{version} is {record.state}, not a candidate")
            # Switched off or not: what replaces it has to be better.
            live = versions.live_ids(tx).get(version.name)
            compared = record.manifest.evaluation.previous
            if compared != (str(live) if live else None):
                raise ConflictError(
                    f"{version} was evaluated against {compared}, but {live or 'nothing'} is "
                    "live: evaluate it again"
                )
            verdict = judge(record.manifest.evaluation, gates.get(tx, version.name))
            state = VersionState.PASSED if verdict.passed else VersionState.REJECTED
            versions.set_state(tx, version, state, verdict.reason, actor=by, now=time.time())
        return verdict
