"""The verbs about tenants: their keys, their limits, their bills."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import durations
from cluster.cli.session import Verbs, at, client, say
from cluster.types import Role

if TYPE_CHECKING:
    from cluster.records.limits import Limits


_LIMIT_HELP = "bound what {} may use: what is named changes, the rest stays; without bounds: show"


def add_keys(verbs: Verbs) -> list[argparse.ArgumentParser]:
    """`keys` and its actions."""
    keys = verbs.add_parser("keys", help="issue, list and revoke API keys")
    keys.set_defaults(run=_list_keys, tenant=None)
    actions = keys.add_subparsers(metavar="ACTION")
    issue = actions.add_parser("issue", help="create a key; its secret is shown once")
    issue.add_argument("--tenant", required=True)
    issue.add_argument("--principal", default="default", help="the person or service that uses it")
    issue.add_argument("--role", action="append", choices=[role.value for role in Role])
    issue.add_argument("--model", action="append", default=[], help="limit it to this adapter")
    issue.add_argument("--alias", default="", help="a name to tell keys by")
    issue.add_argument("--duration", help="until it expires: 90s, 15m, 12h, 30d; default never")
    issue.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE")
    _add_limits(issue)
    issue.set_defaults(run=_issue)
    listed = actions.add_parser("list", help="every key, without its secret")
    listed.add_argument("--tenant")
    listed.set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", help="end a key at once")
    revoke.add_argument("key_id")
    revoke.set_defaults(run=_revoke)
    limit = actions.add_parser("limit", help=_LIMIT_HELP.format("a key"))
    limit.add_argument("key_id")
    _add_limits(limit)
    _add_none(limit)
    limit.set_defaults(run=_limit_key)
    return [keys, issue, listed, revoke, limit]


def add_tenants(verbs: Verbs) -> list[argparse.ArgumentParser]:
    """`tenants` and its actions."""
    tenants = verbs.add_parser("tenants", help="suspend a tenant, or let it in again")
    actions = tenants.add_subparsers(metavar="ACTION", required=True)
    suspend = actions.add_parser("suspend", help="let none of its keys through, at once")
    resume = actions.add_parser("resume", help="let its keys through again")
    for parser, suspended in ((suspend, True), (resume, False)):
        parser.add_argument("tenant")
        parser.set_defaults(run=_suspend, suspended=suspended)
    return [tenants, suspend, resume]


def _suspend(options: argparse.Namespace) -> int:
    control = client(options)
    control.do(control.keys.suspend_tenant(options.tenant, options.suspended, control.name))
    found = {"tenant": options.tenant, "suspended": options.suspended}
    said = "suspended: none of its keys is let through" if options.suspended else "let in again"
    return say(options, found, [f"{options.tenant} is {said}"])


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rpm", type=int, help="requests in any minute")
    parser.add_argument("--tpm", type=int, help="tokens, read and written, in any minute")
    parser.add_argument("--usd", type=float, help="US dollars for tokens in each period")
    parser.add_argument("--period", help="of --usd: 12h, 30d; default: one without end")


def _add_none(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--none", action="store_true", help="bound it no longer")


def add_usage(verbs: Verbs) -> list[argparse.ArgumentParser]:
    """`usage` and its actions."""
    usage = verbs.add_parser("usage", help="a tenant's bill, its limits, and the price book")
    usage.add_argument("--tenant", help="whose bill")
    usage.add_argument("--since", default="30d", help="how far back: 90s, 15m, 12h, 30d")
    usage.add_argument("--prices", type=Path, help="YAML price book to reckon with instead")
    usage.set_defaults(run=_bill)
    actions = usage.add_subparsers(metavar="ACTION")
    limit = actions.add_parser("limit", help=_LIMIT_HELP.format("a tenant"))
    limit.add_argument("tenant", nargs="?")
    _add_limits(limit)
    _add_none(limit)
    limit.set_defaults(run=_limit_tenant)
    prices = actions.add_parser("prices", help="put a price book in force from now on")
    prices.add_argument("file", type=Path, help="YAML")
    prices.set_defaults(run=_set_prices)
    return [usage, limit, prices]


def _issue(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from cluster.errors import UserError
    from cluster.records.keys import KeyRequest

    pairs = [text.partition("=") for text in options.attribute]
    if any(not mark for _, mark, _ in pairs):
        raise UserError("write attributes as NAME=VALUE")
    try:
        request = KeyRequest(
            tenant=options.tenant,
            roles=tuple(Role(role) for role in options.role or [Role.INFERENCE]),
            principal=options.principal,
            alias=options.alias,
            models=tuple(options.model),
            attributes={name: value for name, _, value in pairs},
            lasts_s=durations.seconds(options.duration) if options.duration else None,
            limits=_limits(options),
        )
    except ValidationError as error:
        raise UserError("; ".join(item["msg"] for item in error.errors())) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    control = client(options)
    key = control.do(control.keys.issue(request, control.name, by_operator=True))
    lines = [
        f"key {key.key_id} of {request.tenant}; this is the only time it is shown:",
        key.secret,
    ]
    return say(options, asdict(key), lines)


def _list_keys(options: argparse.Namespace) -> int:
    control = client(options)
    found = control.do(control.keys.listed(options.tenant))
    lines = []
    for key in found:
        until = f"until {at(key.expires_at)}" if key.expires_at else "until revoked"
        state = "revoked" if key.revoked_at else until
        reach = ", ".join(key.models) or "all adapters of the tenant"
        reach += _bounds(key.limits)
        who = f"{key.tenant}/{key.principal}"
        lines.append(f"{key.key_id}  {who:<24} {','.join(key.roles):<18} {state:<22} {reach}")
    rows = [{**asdict(key), "limits": key.limits.model_dump()} for key in found]
    return say(options, rows, lines or ["there is no key"])


def _revoke(options: argparse.Namespace) -> int:
    control = client(options)
    control.do(control.keys.revoke(options.key_id, control.name))
    return say(options, {"revoked": options.key_id}, [f"key {options.key_id} is revoked"])


def _limits(options: argparse.Namespace, before: Limits | None = None) -> Limits:
    """`before` with what was said; without it, none but what was said."""
    from pydantic import ValidationError

    from cluster.errors import UserError
    from cluster.records.limits import Limits

    try:
        period = durations.seconds(options.period) if options.period else None
        said = {"rpm": options.rpm, "tpm": options.tpm, "max_usd": options.usd, "period_s": period}
        given = {name: value for name, value in said.items() if value is not None}
        limits = Limits.model_validate({**(before.model_dump() if before else {}), **given})
    except ValidationError as error:
        raise UserError("; ".join(item["msg"] for item in error.errors())) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    if options.period and limits.max_usd is None:
        raise UserError("--period is of a budget: say how much with --usd")
    return limits


def _bounds(limits: Limits) -> str:
    said = []
    if limits.rpm is not None:
        said.append(f"{limits.rpm} requests a minute")
    if limits.tpm is not None:
        said.append(f"{limits.tpm} tokens a minute")
    if limits.max_usd is not None:
        period = f" every {durations.written(limits.period_s)}" if limits.period_s else ""
        said.append(f"{limits.max_usd:g} $" + period)
    return f"  at most {', '.join(said)}" if said else ""


def _limit_key(options: argparse.Namespace) -> int:
    from cluster.records.limits import key_scope

    limits = _limited(options, key_scope(options.key_id))
    found = {"key_id": options.key_id, "limits": limits.model_dump()}
    bounds = _bounds(limits) or "  not bounded"
    return say(options, found, [f"key {options.key_id}:{bounds}"])


def _said(options: argparse.Namespace) -> bool:
    """Whether any bound is named."""
    return any(one is not None for one in (options.rpm, options.tpm, options.usd, options.period))


def _limited(options: argparse.Namespace, scope: str) -> Limits:
    """The limits of a scope, changed first where that was asked for."""
    from cluster.errors import UserError
    from cluster.records.limits import Limits

    control = client(options)
    before = control.do(control.ledger.all_limits()).get(scope, Limits())
    said = _said(options)
    if options.none and said:
        raise UserError("--none is no bound at all: leave the others out")
    after = Limits() if options.none else _limits(options, before)
    if said or options.none:
        control.do(control.ledger.set_limits(scope, after, control.name, by_operator=True))
    return after


def _limit_tenant(options: argparse.Namespace) -> int:
    from cluster.errors import UserError
    from cluster.records.limits import tenant_scope

    if options.tenant:
        scope = tenant_scope(options.tenant)
        limits = _limited(options, scope)
        bounds = _bounds(limits) or "  not bounded"
        return say(options, {scope: limits.model_dump()}, [f"{scope}{bounds}"])
    if options.none or _said(options):
        raise UserError("say which tenant: headrace usage limit TENANT --rpm 600")
    control = client(options)
    found = control.do(control.ledger.all_limits())
    rows = {scope: limits.model_dump() for scope, limits in found.items()}
    lines = [f"{scope}{_bounds(limits)}" for scope, limits in found.items()]
    return say(options, rows, lines or ["nothing is bounded"])


def _set_prices(options: argparse.Namespace) -> int:
    from cluster.budget.prices import PriceBook
    from cluster.config import load

    book = load(PriceBook, options.file)
    control = client(options)
    control.do(control.ledger.set_prices(book, control.name))
    return say(options, book.model_dump(), [f"{options.file} is the price book from now on"])


def _bill(options: argparse.Namespace) -> int:
    from cluster.budget.prices import PriceBook
    from cluster.config import load
    from cluster.errors import UserError

    if not options.tenant:
        raise UserError("say whose bill: headrace usage --tenant TENANT")
    try:
        since = durations.seconds(options.since)
    except ValueError as error:
        raise UserError(str(error)) from error
    prices = load(PriceBook, options.prices) if options.prices else None
    control, now = client(options), time.time()
    bill = control.do(control.usage.bill(options.tenant, now - since, now + 1, prices))
    lines = [
        f"{line['version']:<24} {line['requests']:8d} requests ({line['cached']} cached)  "
        f"{line['input_tokens']:10d} tokens read  {line['output_tokens']:10d} written  "
        f"{line['usd']:10.4f} $"
        for line in bill["lines"]
    ]
    lines.append(
        f"{bill['adapter_hours']:.2f} adapter hours, {bill['training_seconds']:.0f} s of training, "
        f"{bill['labels']} labels; {bill['usd']:.4f} $ in all"
    )
    return say(options, bill, lines)
