"""The verbs that speak to a running control plane: keys, adapters, rollout, kill, usage, and more.

Each prints for people, or one JSON document with `--json`. Nothing is decided here.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import durations
from cluster.types import AdapterVersion, Role

if TYPE_CHECKING:
    from cluster.control.client import ControlClient

Verbs = Any
"""What `argparse` gives to add verbs to; it has no public name."""


def add_verbs(verbs: Verbs, workdir: Path) -> None:
    """Add these verbs to the command's."""
    for parser in (
        *_keys(verbs),
        *_adapters(verbs),
        *_rollout(verbs),
        *_switch(verbs),
        _usage(verbs),
        _events(verbs),
    ):
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        parser.add_argument("--workdir", type=Path, default=workdir, help="of the running cluster")


def _keys(verbs: Verbs) -> list[argparse.ArgumentParser]:
    keys = verbs.add_parser("keys", help="issue, list and revoke API keys")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    issue = actions.add_parser("issue", help="create a key; its secret is shown once")
    issue.add_argument("--tenant", required=True)
    issue.add_argument("--principal", default="default", help="the person or service that uses it")
    issue.add_argument("--role", action="append", choices=[role.value for role in Role])
    issue.add_argument("--model", action="append", default=[], help="limit it to this adapter")
    issue.add_argument("--alias", default="", help="a name to tell keys by")
    issue.add_argument("--duration", help="until it expires: 90s, 15m, 12h, 30d; default never")
    issue.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE")
    issue.set_defaults(run=_issue)
    listed = actions.add_parser("list", help="every key, without its secret")
    listed.add_argument("--tenant")
    listed.set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", help="end a key at once")
    revoke.add_argument("key_id")
    revoke.set_defaults(run=_revoke)
    return [issue, listed, revoke]


def _adapters(verbs: Verbs) -> list[argparse.ArgumentParser]:
    adapters = verbs.add_parser("adapters", help="list adapter versions, and who reaches them")
    adapters.set_defaults(run=_list_adapters)
    actions = adapters.add_subparsers(metavar="ACTION")
    grant = actions.add_parser("grant", help="let another tenant reach an adapter")
    withdraw = actions.add_parser("withdraw", help="take a grant back")
    for parser, granted in ((grant, True), (withdraw, False)):
        parser.add_argument("adapter")
        parser.add_argument("tenant", help="'*' is every tenant")
        parser.set_defaults(run=_grant, granted=granted)
    card = actions.add_parser("card", help="the model card of a version, as Markdown")
    card.add_argument("version", help="name@number")
    card.set_defaults(run=_card)
    register = actions.add_parser("register", help="enter a published version as a candidate")
    register.add_argument("path", type=Path)
    register.add_argument("--tenant", required=True, help="whose the adapter is")
    register.set_defaults(run=_register)
    gate = actions.add_parser("gate", help="have a candidate judged by its evaluation")
    gate.add_argument("version", help="name@number")
    gate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    gate.set_defaults(run=_gate)
    promote = actions.add_parser("promote", help="swap a passed version in at once")
    promote.add_argument("version", help="name@number")
    promote.set_defaults(run=_promote)
    return [adapters, grant, withdraw, card, register, gate, promote]


def _rollout(verbs: Verbs) -> list[argparse.ArgumentParser]:
    rollout = verbs.add_parser("rollout", help="bring a version to the users step by step")
    actions = rollout.add_subparsers(required=True, metavar="ACTION")
    start = actions.add_parser("start", help="begin with a passed version")
    start.add_argument("version", help="name@number")
    start.add_argument("--plan", type=Path, help="YAML file; default: shadow, 5, 25, 50 percent")
    start.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    start.set_defaults(run=_start)
    status = actions.add_parser("status", help="the newest rollouts and what was seen of them")
    status.add_argument("--limit", type=int, default=10)
    status.set_defaults(run=_status)
    end = actions.add_parser("end", help="take the candidate back")
    end.add_argument("adapter")
    end.add_argument("--reason", required=True, help="for the audit log")
    end.set_defaults(run=_end)
    return [start, status, end]


def _switch(verbs: Verbs) -> list[argparse.ArgumentParser]:
    kill = verbs.add_parser("kill", help="switch an adapter off everywhere, now")
    kill.add_argument("adapter")
    kill.add_argument("--reason", required=True, help="for the audit log")
    kill.set_defaults(run=_kill)
    revive = verbs.add_parser("revive", help="let a killed adapter serve again, proved anew")
    revive.add_argument("adapter")
    revive.set_defaults(run=_revive)
    return [kill, revive]


def _usage(verbs: Verbs) -> argparse.ArgumentParser:
    usage: argparse.ArgumentParser = verbs.add_parser("usage", help="a tenant's bill")
    usage.add_argument("--tenant", required=True)
    usage.add_argument("--since", default="30d", help="how far back: 90s, 15m, 12h, 30d")
    usage.add_argument("--prices", type=Path, help="YAML price book; default: all is free")
    usage.add_argument("--settle", action="store_true", help="first enter what only the log has")
    usage.set_defaults(run=_bill)
    return usage


def _events(verbs: Verbs) -> argparse.ArgumentParser:
    events: argparse.ArgumentParser = verbs.add_parser("events", help="what was changed, by whom")
    events.add_argument("--limit", type=int, default=30)
    events.set_defaults(run=_list_events)
    return events


def _client(options: argparse.Namespace) -> ControlClient:
    from cluster import runtime

    cluster = runtime.require_cluster(options.workdir.resolve())
    # Ray prints its advice on standard output, where a reader of ours expects only the answer.
    with redirect_stdout(sys.stderr):
        runtime.attach(cluster)
        # Ray reads its authentication settings when it is imported, so it comes after them.
        from cluster.control.client import ControlClient

        return ControlClient(f"operator {getpass.getuser()}")


def _say(options: argparse.Namespace, found: object, lines: list[str]) -> int:
    print(json.dumps(found) if options.json else "\n".join(lines))
    return 0


def _issue(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from cluster.errors import UserError
    from cluster.registry.keys import KeyRequest

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
        )
    except ValidationError as error:
        raise UserError("; ".join(item["msg"] for item in error.errors())) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    key = _client(options).issue_key(request)
    lines = [
        f"key {key.key_id} of {request.tenant}; this is the only time it is shown:",
        key.secret,
    ]
    return _say(options, asdict(key), lines)


def _list_keys(options: argparse.Namespace) -> int:
    found = _client(options).keys(options.tenant)
    lines = []
    for key in found:
        until = f"until {_at(key.expires_at)}" if key.expires_at else "until revoked"
        state = "revoked" if key.revoked_at else until
        reach = ", ".join(key.models) or "all adapters of the tenant"
        who = f"{key.tenant}/{key.principal}"
        lines.append(f"{key.key_id}  {who:<24} {','.join(key.roles):<18} {state:<22} {reach}")
    return _say(options, [asdict(key) for key in found], lines or ["there is no key"])


def _revoke(options: argparse.Namespace) -> int:
    _client(options).revoke_key(options.key_id)
    return _say(options, {"revoked": options.key_id}, [f"key {options.key_id} is revoked"])


def _list_adapters(options: argparse.Namespace) -> int:
    client = _client(options)
    records, table = client.adapter_versions(), client.table()
    rows = [
        {
            "name": r.id.name,
            "version": r.id.version,
            "state": "killed" if r.id.name in table.killed and r.state == "live" else r.state,
            "reason": r.retrain or r.reason,
            "accuracy": r.manifest.evaluation.accuracy,
            "tenants": sorted(table.access.get(r.id.name, ())),
            "path": r.path,
            "digest": r.digest,
        }
        for r in records
    ]
    lines = [
        f"{r.id!s:<24} {row['state']:<10} accuracy {row['accuracy']:.3f}  "
        f"{', '.join(sorted(table.access.get(r.id.name, ()))):<16} {row['reason']}"
        for r, row in zip(records, rows, strict=True)
    ]
    return _say(options, rows, lines or ["there is no adapter"])


def _register(options: argparse.Namespace) -> int:
    version = _client(options).register_candidate(str(options.path.resolve()), options.tenant)
    return _say(options, {"version": str(version)}, [f"{version} is a candidate"])


def _gate(options: argparse.Namespace) -> int:
    from cluster.config import parse
    from cluster.rollout.gate import GateConfig

    version = _version(options.version)
    config = parse(GateConfig, {}, options.set, "the gate")
    verdict = _client(options).gate(version, config)
    said = "passed" if verdict.passed else "refused"
    _say(options, asdict(verdict), [f"{version} is {said}: {verdict.reason}"])
    return 0 if verdict.passed else 1


def _promote(options: argparse.Namespace) -> int:
    report = _client(options).promote(_version(options.version))
    line = (
        f"{report.current} serves in place of {report.previous or 'nothing'} on "
        f"{report.replicas} replicas; loaded and proved in {report.prepare_s * 1000:.0f} ms"
    )
    return _say(options, asdict(report), [line])


def _card(options: argparse.Namespace) -> int:
    version = _version(options.version)
    card = _client(options).card(version)
    return _say(options, {"version": str(version), "card": card}, [card.rstrip()])


def _version(text: str) -> AdapterVersion:
    from cluster.errors import UserError

    try:
        return AdapterVersion.parse(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def _grant(options: argparse.Namespace) -> int:
    _client(options).grant(options.adapter, options.tenant, granted=options.granted)
    verb = "reaches" if options.granted else "no longer reaches"
    found = {"adapter": options.adapter, "tenant": options.tenant, "granted": options.granted}
    return _say(options, found, [f"{options.tenant} {verb} {options.adapter}"])


def _start(options: argparse.Namespace) -> int:
    from cluster.config import load, parse
    from cluster.rollout.plan import RolloutPlan

    version = _version(options.version)
    if options.plan:
        plan = load(RolloutPlan, options.plan, options.set)
    else:
        plan = parse(RolloutPlan, {}, options.set, "the default plan")
    rollout = _client(options).start_rollout(version, plan)
    against = f" beside {rollout.baseline}" if rollout.baseline else ""
    found = {"id": rollout.id, "candidate": str(version), "status": rollout.status}
    return _say(options, found, [f"rollout {rollout.id} of {version}{against} has begun"])


def _status(options: argparse.Namespace) -> int:
    rows, lines = [], []
    for rollout in _client(options).rollouts(options.limit):
        phase = rollout.plan.phases[rollout.phase]
        kind = "shadow" if phase.shadow else "users"
        arms = {
            name: {
                "requests": arm.errors.n,
                "error_rate": round(arm.errors.mean, 5),
                "latency_ms": round(arm.latency_ms.mean, 2),
                "confidence": round(arm.confidence.mean, 4),
                "disliked": round(arm.disliked.mean, 4) if arm.disliked.n else None,
                "escalated": round(arm.escalated.mean, 4) if arm.escalated.n else None,
            }
            for name, arm in (
                ("baseline", rollout.whole.baseline),
                ("candidate", rollout.whole.candidate),
            )
        }
        row = {
            "id": rollout.id,
            "candidate": str(rollout.candidate),
            "baseline": str(rollout.baseline) if rollout.baseline else None,
            "status": rollout.status,
            "phase": rollout.phase,
            "percent": phase.percent,
            "shadow": phase.shadow,
            "reason": rollout.reason,
            "seen": arms,
        }
        rows.append(row)
        where = f"phase {rollout.phase + 1} of {len(rollout.plan.phases)}, {phase.percent:g}% of "
        lines.append(
            f"{rollout.id:4d}  {row['candidate']:<20} {rollout.status:<12} {where}{kind}  "
            f"{rollout.reason}"
        )
        lines += [
            f"        {name:<10} {arm['requests']:6d} requests  errors {arm['error_rate']:.2%}  "
            f"{arm['latency_ms']:8.1f} ms  confidence {arm['confidence']:.3f}"
            for name, arm in arms.items()
        ]
    return _say(options, rows, lines or ["there was no rollout yet"])


def _end(options: argparse.Namespace) -> int:
    _client(options).end_rollout(options.adapter, options.reason)
    found = {"adapter": options.adapter, "ended": True}
    return _say(options, found, [f"the rollout of {options.adapter} is being taken back"])


def _kill(options: argparse.Namespace) -> int:
    report = _client(options).kill(options.adapter, options.reason)
    told = "every engine replica confirmed" if report.confirmed else "NOT every replica confirmed"
    line = (
        f"{report.version or report.adapter} is off after {report.seconds * 1000:.0f} ms; "
        f"{report.aborted} requests cut off; {told}"
    )
    _say(options, asdict(report), [line])
    return 0 if report.confirmed else 1


def _revive(options: argparse.Namespace) -> int:
    report = _client(options).revive(options.adapter)
    line = f"{report.current} serves again" if report else "it may serve again; none was live"
    return _say(options, asdict(report) if report else None, [line])


def _bill(options: argparse.Namespace) -> int:
    from cluster.config import load
    from cluster.errors import UserError
    from cluster.registry.usage import PriceBook

    try:
        since = durations.seconds(options.since)
    except ValueError as error:
        raise UserError(str(error)) from error
    prices = load(PriceBook, options.prices) if options.prices else PriceBook()
    client, now = _client(options), time.time()
    settled = client.settle() if options.settle else 0
    bill = client.bill(options.tenant, now - since, now + 1, prices)
    lines = [
        f"{line['version']:<24} {line['requests']:8d} requests ({line['cached']} cached)  "
        f"{line['input_tokens']:10d} tokens read  {line['output_tokens']:10d} written  "
        f"{line['usd']:10.4f} $"
        for line in bill["lines"]
    ]
    lines.append(
        f"{bill['training_seconds']:.0f} s of training, {bill['labels']} labels; "
        f"{bill['usd']:.4f} $ in all"
    )
    if options.settle:
        lines.append(f"{settled} rows were in the log only and are entered now")
    return _say(options, {**bill, "settled": settled}, lines)


def _list_events(options: argparse.Namespace) -> int:
    found = _client(options).events(options.limit)
    lines = [
        f"{_at(event['recorded_at'])}  {event['kind']:<20} {event['subject']:<24} "
        f"{event['actor']:<24} {json.dumps(event['detail'])}"
        for event in reversed(found)
    ]
    return _say(options, found, lines or ["nothing was changed yet"])


def _at(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
