"""The verbs that speak to a running control plane: keys, adapters, rollout, kill, usage, and more.

Each prints for people, or one JSON document with `--json`. Nothing is decided here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from cluster.cli import bundles, tenancy
from cluster.cli.session import Verbs, at, client, named_adapter, named_tenant, named_version, say

#: Rollouts shown by default.
_NEWEST = 10


def add_verbs(verbs: Verbs) -> None:
    """Add these verbs to the command's, which has defaults for `--json` and `--workdir`."""
    for parser in (
        *tenancy.add_keys(verbs),
        *tenancy.add_tenants(verbs),
        *_adapters(verbs),
        *_rollout(verbs),
        *_switch(verbs),
        *tenancy.add_usage(verbs),
        *bundles.add_bundles(verbs),
        _events(verbs),
    ):
        # Without a default, which would undo what was said before an action.
        unsaid = argparse.SUPPRESS
        parser.add_argument(
            "--json", action="store_true", default=unsaid, help="print one JSON document"
        )
        parser.add_argument("--workdir", type=Path, default=unsaid, help="of the running cluster")


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
    gate.set_defaults(run=_gate)
    rules = actions.add_parser("rules", help="what an adapter's candidates are judged by")
    rules.add_argument("adapter")
    rules.add_argument("--file", type=Path, help="YAML file of rules that are to hold from now on")
    rules.set_defaults(run=_rules)
    promote = actions.add_parser("promote", help="swap a passed version in at once")
    promote.add_argument("version", help="name@number")
    promote.set_defaults(run=_promote)
    return [adapters, grant, withdraw, card, register, gate, rules, promote]


def _rollout(verbs: Verbs) -> list[argparse.ArgumentParser]:
    rollout = verbs.add_parser("rollout", help="bring a version to the users step by step")
    rollout.set_defaults(run=_status, limit=_NEWEST)
    actions = rollout.add_subparsers(metavar="ACTION")
    start = actions.add_parser("start", help="begin with a passed version")
    start.add_argument("version", help="name@number")
    start.add_argument("--plan", type=Path, help="YAML file; default: shadow, 5, 25, 50 percent")
    start.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    start.set_defaults(run=_start)
    status = actions.add_parser("status", help="the newest rollouts and what was seen of them")
    status.add_argument("--limit", type=int, default=_NEWEST)
    status.set_defaults(run=_status)
    end = actions.add_parser("end", help="take the candidate back")
    end.add_argument("adapter")
    end.add_argument("--reason", required=True, help="for the audit log")
    end.set_defaults(run=_end)
    appeal = actions.add_parser("appeal", help="let a version that a rollout refused try again")
    appeal.add_argument("version", help="name@number")
    appeal.add_argument("--reason", required=True, help="for the audit log")
    appeal.set_defaults(run=_appeal)
    promote = actions.add_parser("promote", help="agree to a candidate whose plan waits for it")
    promote.add_argument("adapter")
    promote.set_defaults(run=_promote_rollout)
    return [rollout, start, status, end, appeal, promote]


def _switch(verbs: Verbs) -> list[argparse.ArgumentParser]:
    kill = verbs.add_parser("kill", help="switch an adapter off everywhere, now")
    kill.add_argument("adapter")
    kill.add_argument("--reason", required=True, help="for the audit log")
    kill.set_defaults(run=_kill)
    revive = verbs.add_parser("revive", help="let a killed adapter serve again, proved anew")
    revive.add_argument("adapter")
    revive.add_argument(
        "--version", type=int, metavar="N", help="with this one in place of the one that was live"
    )
    revive.set_defaults(run=_revive)
    return [kill, revive]


def _events(verbs: Verbs) -> argparse.ArgumentParser:
    events: argparse.ArgumentParser = verbs.add_parser("events", help="what was changed, by whom")
    events.add_argument("--limit", type=int, default=30)
    events.set_defaults(run=_list_events)
    return events


def _list_adapters(options: argparse.Namespace) -> int:
    control = client(options)
    records, table = control.do(control.adapters.listed()), control.do(control.serving.table())
    rows = [
        {
            "name": r.id.name,
            "version": r.id.version,
            "state": "killed" if r.id.name in table.killed and r.state == "live" else r.state,
            "reason": r.retrain or r.reason,
            "metric": r.manifest.evaluation.primary,
            "value": r.manifest.evaluation.headline.value,
            "tenants": sorted(table.access.get(r.id.name, ())),
            "path": r.path,
            "digest": r.digest,
        }
        for r in records
    ]
    lines = [
        f"{r.id!s:<24} {row['state']:<10} {row['metric']} {row['value']:.3f}  "
        f"{', '.join(sorted(table.access.get(r.id.name, ()))):<16} {row['reason']}"
        for r, row in zip(records, rows, strict=True)
    ]
    return say(options, rows, lines or ["there is no adapter"])


def _register(options: argparse.Namespace) -> int:
    tenant = named_tenant(options.tenant)
    control = client(options)
    version = control.do(
        control.adapters.register(str(options.path.resolve()), tenant, control.name)
    )
    return say(options, {"version": str(version)}, [f"{version} is a candidate"])


def _gate(options: argparse.Namespace) -> int:
    version = named_version(options.version)
    control = client(options)
    verdict = control.do(control.evaluations.judge(version, control.name))
    said = "passed" if verdict.passed else "refused"
    say(options, asdict(verdict), [f"{version} is {said}: {verdict.reason}"])
    return 0 if verdict.passed else 1


def _rules(options: argparse.Namespace) -> int:
    from cluster.config import load
    from cluster.records.gate import GateRules

    adapter = named_adapter(options.adapter)
    wanted = load(GateRules, options.file) if options.file else None
    control = client(options)
    if wanted is not None:
        control.do(control.evaluations.set_rules(adapter, wanted, control.name))
    found = control.do(control.evaluations.rules(adapter))
    lines = [
        ", ".join(f"{name} {value}" for name, value in rule.model_dump().items())
        for rule in found.rules
    ]
    return say(options, {"adapter": adapter, **found.model_dump(mode="json")}, lines)


def _promote(options: argparse.Namespace) -> int:
    control = client(options)
    report = control.do(control.serving.promote(named_version(options.version), control.name))
    line = (
        f"{report.current} serves in place of {report.previous or 'nothing'} on "
        f"{report.replicas} replicas; loaded and proved in {report.prepare_s * 1000:.0f} ms"
    )
    return say(options, asdict(report), [line])


def _card(options: argparse.Namespace) -> int:
    version = named_version(options.version)
    control = client(options)
    card = control.do(control.adapters.card(version))
    return say(options, {"version": str(version), "card": card}, card.rstrip().splitlines())


def _grant(options: argparse.Namespace) -> int:
    control = client(options)
    control.do(
        control.adapters.grant(options.adapter, options.tenant, options.granted, control.name)
    )
    verb = "reaches" if options.granted else "no longer reaches"
    found = {"adapter": options.adapter, "tenant": options.tenant, "granted": options.granted}
    return say(options, found, [f"{options.tenant} {verb} {options.adapter}"])


def _start(options: argparse.Namespace) -> int:
    from cluster.config import load, parse
    from cluster.rollout.plan import RolloutPlan

    version = named_version(options.version)
    if options.plan:
        plan = load(RolloutPlan, options.plan, options.set)
    else:
        plan = parse(RolloutPlan, {}, options.set, "the default plan")
    control = client(options)
    rollout = control.do(control.rollouts.start(version, plan, control.name))
    against = f" beside {rollout.baseline}" if rollout.baseline else ""
    found = {"id": rollout.id, "candidate": str(version), "status": rollout.status}
    return say(options, found, [f"rollout {rollout.id} of {version}{against} has begun"])


def _status(options: argparse.Namespace) -> int:
    rows, lines = [], []
    control = client(options)
    for rollout in control.do(control.rollouts.listed(options.limit)):
        row = rollout.as_json()
        kind = "shadow" if row["shadow"] else "users"
        rows.append(row)
        where = f"phase {rollout.phase + 1} of {len(rollout.plan.phases)}, {row['percent']:g}% of "
        lines.append(
            f"{rollout.id:4d}  {row['candidate']:<20} {rollout.status:<12} {where}{kind}  "
            f"{rollout.reason}"
        )
        lines += [
            f"        {name:<10} {arm['requests']:6d} requests  errors {arm['error_rate']:.2%}  "
            f"{arm['latency_ms']:8.1f} ms  confidence {arm['confidence']:.3f}"
            for name, arm in row["seen"].items()
        ]
        lines += [f"        set aside {name}: {why}" for name, why in row["aside"].items()]
        if row["verdict"] is not None:
            lines.append(f"        candidate {row['verdict']['text']}")
    return say(options, rows, lines or ["there was no rollout yet"])


def _end(options: argparse.Namespace) -> int:
    control = client(options)
    control.do(control.rollouts.end(options.adapter, options.reason, control.name))
    found = {"adapter": options.adapter, "ended": True}
    return say(options, found, [f"the rollout of {options.adapter} is being taken back"])


def _appeal(options: argparse.Namespace) -> int:
    version = named_version(options.version)
    control = client(options)
    control.do(control.rollouts.appeal(version, options.reason, control.name))
    found = {"version": str(version), "state": "passed"}
    return say(options, found, [f"{version} may be tried again: headrace rollout start {version}"])


def _promote_rollout(options: argparse.Namespace) -> int:
    control = client(options)
    control.do(control.rollouts.promote(options.adapter, control.name))
    found = {"adapter": options.adapter, "promoted": True}
    return say(options, found, [f"the candidate of {options.adapter} is live"])


def _kill(options: argparse.Namespace) -> int:
    control = client(options)
    report = control.do(control.serving.kill(options.adapter, options.reason, control.name))
    confirmed = (
        "every engine replica confirmed" if report.confirmed else "NOT every replica confirmed"
    )
    line = (
        f"{report.version or report.adapter} is off after {report.seconds * 1000:.0f} ms; "
        f"{report.aborted} requests cut off; {confirmed}"
    )
    if not report.recorded:
        line += "; NOT recorded yet: make room for the registry and the audit log"
    say(options, asdict(report), [line])
    return 0 if report.confirmed and report.recorded else 1


def _revive(options: argparse.Namespace) -> int:
    number = options.version
    version = None if number is None else named_version(f"{options.adapter}@{number}")
    control = client(options)
    report = control.do(control.serving.revive(options.adapter, control.name, version))
    line = f"{report.current} serves again" if report else "enabled; no version was live"
    return say(options, asdict(report) if report else None, [line])


def _list_events(options: argparse.Namespace) -> int:
    control = client(options)
    found = control.do(control.events.newest(options.limit))
    lines = [
        f"{at(event['recorded_at'])}  {event['kind']:<20} {event['subject']:<24} "
        f"{event['actor']:<24} {json.dumps(event['detail'])}"
        for event in reversed(found)
    ]
    return say(options, found, lines or ["nothing was changed yet"])
