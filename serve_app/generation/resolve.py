"""Resolves a request to a target: pure decisions on the routing table and the router's choice.

The order: the router's (or a policy's) adapter if it is live, the router's own choice where the
policy's is not, nothing that the caller does not reach, the base model for the rest. A caller who
names a version gets that version or a refusal, never a substitute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from msgspec import structs

from cluster.control.protocol import Caller, RoutingTable
from cluster.records.adapter import ServedAdapter
from cluster.records.model import Target
from cluster.records.trace import Refusal, Route
from cluster.rollout.accounts import is_aside
from cluster.rollout.state import chosen
from serve_app.generation import refusals
from serve_app.generation.targets import Targets


class Question(Caller, Protocol):
    """What of a request decides where it goes."""

    @property
    def model(self) -> str:
        """The model its caller named."""
        ...

    @property
    def route(self) -> Route | None:
        """The router's choice; None where routing was down and fails open."""
        ...


@dataclass(frozen=True)
class Resolution:
    """Where a request goes."""

    target: Target
    route: Route | None
    """The route as it is to be recorded."""
    warnings: tuple[str, ...] = ()
    picked: bool = False
    """Whether the version was picked for its user, which makes its answer evidence in a rollout."""


@dataclass(frozen=True)
class Unresolved:
    """No target may answer the request."""

    refusal: Refusal
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class User:
    """Who keeps to one of two versions on trial."""

    name: str
    account: str
    """Of the key that the request came with: see `cluster.rollout.accounts`."""


def resolve(
    question: Question, table: RoutingTable, targets: Targets, user: User, *, live_only: bool
) -> Resolution | Unresolved:
    """Where `question` goes now; with `live_only`, to no candidate of a rollout."""
    route, warnings = question.route, list[str]()
    # Without a route the caller's own choice stands, else the base model.
    name = route.adapter if route is not None else _named(question, table)
    overridden = name is not None and route is not None and route.instead_of
    if overridden and not table.serves(question, name or ""):
        warnings.append(f"adapter {name} is not live; the router's choice answered")
        name = overridden
    named = question.model.partition("@")[0] == name
    foreign = name in table.access and not table.reaches(question, name or "")
    if route is not None and foreign and not named:
        # In the record as well: a tenant's traffic must not train another tenant's adapter, nor
        # may the answer name that adapter or its intents.
        route = structs.replace(
            route, adapter=None, instead_of=None, intent="", reason="no adapter within reach"
        )
        name = None
    if name is None:
        return Resolution(targets.base, route, tuple(warnings))
    wanted = question.model if named else name
    adapter = table.resolve(question, wanted)
    if adapter is None and wanted == question.model:
        refusal = refusals.unserved(table, question, wanted)
        return Unresolved(refusal, tuple(warnings))
    if adapter is None:
        warnings.append(f"adapter {name} is not live; the base model answered")
        return Resolution(targets.base, route, tuple(warnings))
    # A caller who names a version gets that one.
    picked = wanted == name and not live_only
    if picked:
        adapter = pick(table, adapter, user)
    return Resolution(targets.of(adapter), route, tuple(warnings), picked)


def _named(question: Question, table: RoutingTable) -> str | None:
    """The adapter that the caller named, where it is served to them."""
    name = question.model.partition("@")[0]
    return name if table.serves(question, name) else None


def pick(table: RoutingTable, adapter: ServedAdapter, user: User) -> ServedAdapter:
    """The version of `adapter` that `user` gets: the candidate of a rollout, or the live one."""
    split = table.splits.get(adapter.name)
    if split is None or split.shadow or not chosen(split.rollout, user.name, split.percent):
        return adapter
    return adapter if is_aside(split.aside, user.account) else split.candidate


def on_trial(table: RoutingTable, target: Target) -> bool:
    """Whether `target` is a candidate that users get now."""
    if target.adapter is None:
        return False
    split = table.splits.get(target.adapter.name)
    return split is not None and not split.shadow and target.adapter == split.candidate
