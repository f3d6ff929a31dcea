"""Clients of the control plane: the contracts, called over Ray.

`ControlClient.keys`, `.serving` and so on are the Protocols of `cluster.control.contracts`; there
is no second list of verbs here, but for those that take long. Jobs and commands run a call to its
end with `do`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import ray

from cluster.control import contracts
from cluster.control.protocol import ACTOR_NAME, NAMESPACE
from cluster.errors import UnavailableError

T = TypeVar("T")

_UNAVAILABLE = "the control plane does not answer now: try again in a moment"
_TIMEOUT_S = 120.0
#: Of calls that wait for a swap in progress, which takes as long as its last request does, or for
#: the audit log to be read.
_LONG_TIMEOUT_S = 300.0
_LONG = {
    *(("serving", verb) for verb in ("serve_base", "promote", "revive")),
    *(("rollouts", verb) for verb in ("start", "promote", "appeal")),
    ("usage", "bill"),
}
#: Runs on an event loop of its own, which no SQL holds up.
LEDGER_GROUP = "ledger"
_GROUPS = {("ledger", "exchange"): LEDGER_GROUP}


class _Connection:
    """The actor's handle, looked up anew after it was lost."""

    def __init__(self) -> None:
        self._actor: Any = _lookup()

    def method(self) -> Any:
        if self._actor is None:
            self._actor = _lookup()
        return self._actor.call

    def lost(self) -> None:
        self._actor = None


class _Service:
    """One service of the control plane: its contract's methods as calls of the actor."""

    def __init__(self, connection: _Connection, name: str) -> None:
        self._connection, self._name = connection, name
        self._verbs = contracts.verbs(contracts.SERVICES[name])

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if verb not in self._verbs:
            raise AttributeError(f"the {self._name} service has no {verb!r}")

        async def call(*arguments: Any, **named: Any) -> Any:
            method = self._connection.method()
            if (group := _GROUPS.get((self._name, verb))) is not None:
                method = method.options(concurrency_group=group)
            timeout_s = _LONG_TIMEOUT_S if (self._name, verb) in _LONG else _TIMEOUT_S
            try:
                called = method.remote(self._name, verb, arguments, named)
                async with asyncio.timeout(timeout_s):
                    return await called
            except ray.exceptions.RayTaskError as error:
                # Ray wraps what the actor raised; callers handle our own errors.
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except ray.exceptions.RayActorError as error:
                # The next call looks for the control plane that is up then.
                self._connection.lost()
                raise UnavailableError(_UNAVAILABLE) from error
            except TimeoutError as error:
                message = f"the control plane has not answered for {timeout_s:g} s"
                raise UnavailableError(message) from error

        return call


class ControlClient:
    """The control plane of the cluster that this process is connected to.

    Errors arrive as the services raised them, or as UnavailableError.
    """

    def __init__(self, name: str = "operator") -> None:
        """`name` is who asks for changes, as the audit log will name them."""
        self.name = name
        self._connection = _Connection()
        self.keys = cast(contracts.Keys, self._service("keys"))
        self.ledger = cast(contracts.Ledger, self._service("ledger"))
        self.usage = cast(contracts.Usage, self._service("usage"))
        self.labels = cast(contracts.Labels, self._service("labels"))
        self.datasets = cast(contracts.Datasets, self._service("datasets"))
        self.adapters = cast(contracts.Adapters, self._service("adapters"))
        self.evaluations = cast(contracts.Evaluations, self._service("evaluations"))
        self.serving = cast(contracts.Serving, self._service("serving"))
        self.rollouts = cast(contracts.Rollouts, self._service("rollouts"))
        self.events = cast(contracts.Events, self._service("events"))

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end, for jobs and commands; never from within an event loop."""
        return asyncio.run(call)

    def _service(self, name: str) -> _Service:
        return _Service(self._connection, name)


def _lookup() -> Any:
    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError as error:  # Ray knows none by that name
        raise UnavailableError(_UNAVAILABLE) from error
