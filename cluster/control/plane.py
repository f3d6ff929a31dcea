"""The control plane: composes the services, and dispatches calls to them.

One process owns the registry's connection, so that no request path ever waits on SQL. Made into a
named Ray actor by `cluster.launch.local`; tests use it as a plain object.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from cluster.control import contracts
from cluster.control.adapter_locks import AdapterLocks
from cluster.control.database import Database
from cluster.control.kill_switch import KillSwitch
from cluster.control.load_shares import LoadShares
from cluster.control.promotion import Promotion
from cluster.control.protocol import Fleet
from cluster.control.rollout_store import RolloutStore
from cluster.control.rollouts import RolloutController
from cluster.control.routing import RoutingState
from cluster.control.services.adapters import AdapterService
from cluster.control.services.datasets import DatasetService
from cluster.control.services.evaluations import EvaluationService
from cluster.control.services.events import EventService
from cluster.control.services.keys import KeyService
from cluster.control.services.labels import LabelService
from cluster.control.services.ledger import LedgerService
from cluster.control.services.rollouts import RolloutService
from cluster.control.services.serving import ServingService
from cluster.control.services.usage import UsageService

_TICK_S = 1.0


class ControlPlane:
    """Every service, each as the attribute that its contract is named by."""

    def __init__(self, database: str, fleet: Fleet, max_rank: int, audit: Path) -> None:
        """`database` is the registry's URL, `max_rank` the largest LoRA rank that the engines
        take, `audit` the folder of the audit log; changes are chained below it."""
        self._database = Database(database, audit)
        self._kill_switch = KillSwitch(self._database.change)
        load, locks = LoadShares(), AdapterLocks()
        store = RolloutStore(
            self._database.read, self._database.change, lambda: self._kill_switch.unpersisted
        )
        self._routing = RoutingState(self._database, store, self._kill_switch, load)
        controller = RolloutController(store, fleet, self._routing.refresh)
        self._routing.load(controller.splits, lambda: controller.versions)
        promotion = Promotion(self._database, fleet, self._routing, store, controller)
        invalidate = self._routing.invalidate_keys

        self.ledger = LedgerService(self._database, invalidate)
        self.keys = KeyService(self._database, self.ledger.reopen, invalidate)
        self.usage = UsageService(self._database, load)
        self.labels = LabelService(self._database)
        self.datasets = DatasetService(self._database)
        self.adapters = AdapterService(self._database, self._routing, max_rank)
        self.evaluations = EvaluationService(self._database)
        self.serving = ServingService(
            database=self._database,
            fleet=fleet,
            routing=self._routing,
            kill_switch=self._kill_switch,
            controller=controller,
            locks=locks,
            promotion=promotion,
            start_background_loop=self._start_ticking,
        )
        self.rollouts = RolloutService(controller, store, self._routing, locks, promotion)
        self.events = EventService(self._database)
        self._ticking: asyncio.Task[None] | None = None
        self._verbs = {
            (service, verb): getattr(getattr(self, service), verb)
            for service, contract in contracts.SERVICES.items()
            for verb in contracts.verbs(contract)
        }

    async def call(
        self, service: str, verb: str, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Call one method of a contract; what no contract names cannot be reached.

        Raises:
            KeyError: there is no such method.
        """
        return await self._verbs[service, verb](*arguments, **named)

    def close(self) -> None:
        """Stop the background loop and release the registry and the audit chain."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._database.close()

    def _start_ticking(self) -> None:
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._kill_switch.retry(time.time())
            self.rollouts.tick(self._kill_switch)
            self._routing.publish_shares()


def _implements_the_contracts(plane: ControlPlane) -> contracts.Control:
    """Has mypy compare every service with its contract."""
    return plane
