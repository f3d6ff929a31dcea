"""`python -m serve_app.bench.main BENCHMARK`: benchmarks anyone can run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from cluster.errors import HeadraceError
from cluster.progress import ProgressReporter
from cluster.storage import write_atomic
from serve_app.bench import crowds

#: So that each block has one.
_FEWEST_SWAPS = 10
_FASTEST_S = 0.5
_WORKDIR = Path(__file__).resolve().parents[2] / ".headrace" / "bench"


def main(arguments: list[str] | None = None) -> int:
    """Parse and run one benchmark; 2 on a mistake the caller can mend, 1 where an adapter's answer
    was not given, or was another's."""
    options = _parser().parse_args(arguments)
    try:
        found: dict[str, Any] = options.run(options)
    except HeadraceError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201 - a command's own output
        return 2
    if options.report:
        write_atomic(options.report, json.dumps(found, indent=2) + "\n")
    judged = (found, found.get("crowd", {}))
    return int(any(part.get("wrong") or part.get("failed") for part in judged))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="BENCHMARK")
    gateway = verbs.add_parser("gateway", help="our graph beside LiteLLM and the bare engine")
    gateway.add_argument("--rounds", type=int, default=3)
    gateway.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    gateway.add_argument("--concurrency", type=int, default=128)
    gateway.add_argument("--no-engine", action="store_true", help="leave out the real engine")
    gateway.set_defaults(run=_gateway)
    engine = verbs.add_parser("engine", help="our graph beside the bare engine's own server")
    engine.add_argument("--rounds", type=int, default=3)
    engine.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    engine.add_argument("--placement", choices=("split", "fused"), action="append")
    engine.set_defaults(run=_engine)
    soak = verbs.add_parser("soak", help="our graph under steady load: what grows, what slows")
    soak.add_argument("--minutes", type=float, default=30.0)
    soak.add_argument("--concurrency", type=int, default=32)
    soak.add_argument("--placement", choices=("split", "fused"), default="split")
    soak.set_defaults(run=_soak)
    overload = verbs.add_parser("overload", help="ten times the clients the graph can serve")
    overload.add_argument("--seconds", type=float, default=60.0)
    overload.add_argument("--concurrency", type=int, default=128, help="clients that make the peak")
    overload.set_defaults(run=_overload)
    streams = verbs.add_parser("streams", help="hundreds of streams at once, every frame checked")
    streams.add_argument("--concurrency", type=int, default=500)
    streams.set_defaults(run=_streams)
    adapters = verbs.add_parser("adapters", help="proven swaps under load, every answer checked")
    adapters.add_argument("--swaps", type=int, default=200, help="10 at least (default: 200)")
    adapters.add_argument("--every", type=float, default=1.0, help="seconds from swap to swap")
    adapters.add_argument("--clients", type=int, default=4, help="for each half of the load")
    adapters.add_argument("--replicas", type=int, default=1, help="of the engine (default: 1)")
    adapters.add_argument("--no-crowd", action="store_true", help="leave out `crowd`")
    adapters.set_defaults(run=_adapters)
    crowd = verbs.add_parser("crowd", help="what many adapters cost one engine")
    crowd.add_argument("--adapters", type=int, default=crowds.Plan.adapters)
    crowd.add_argument("--rounds", type=int, default=crowds.Plan.rounds)
    crowd.add_argument(
        "--seconds", type=float, default=crowds.Plan.seconds, help="of a measurement by time"
    )
    crowd.set_defaults(run=_crowd)
    hostile = _add_hostile(verbs)
    for verb in (overload, streams, hostile):
        verb.add_argument("--placement", choices=("split", "fused"), default="fused")
    for verb in (gateway, engine, soak, overload, streams, adapters, crowd, hostile):
        verb.add_argument("--report", type=Path, help="where to write rows and figures as JSON")
        verb.add_argument("--workdir", type=Path, default=_WORKDIR)
    return parser


def _add_hostile(verbs: Any) -> argparse.ArgumentParser:
    hostile: argparse.ArgumentParser = verbs.add_parser(
        "hostile", help="one tenant's worst requests beside another's"
    )
    hostile.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    hostile.add_argument("--clients", type=int, default=8, help="hostile connections")
    hostile.add_argument("--engine", choices=("static", "vllm"), default="static")
    hostile.add_argument("--kind", action="append", help="of attack; default: all")
    hostile.set_defaults(run=_hostile)
    return hostile


def _gateway(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import gateway

    progress = ProgressReporter()
    plan = gateway.Plan(options.rounds, options.seconds, options.concurrency)
    with _quiet(options.workdir) as folder:
        found = gateway.run(folder, plan, progress)
    progress.step("Against LiteLLM at its best of one or two workers (medians of the rounds)")
    for name, value in found["ratios"].items():
        progress.say(f"{value:6.2f} x  {name}")
    if not options.no_engine:
        options.placement = None
        found["engine"] = _engine(options)
    return found


def _engine(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import engine

    progress = ProgressReporter()
    placements = tuple(options.placement or engine.Plan.placements)
    plan = engine.Plan(options.rounds, options.seconds, placements=placements)
    with _quiet(options.workdir) as folder:
        found = engine.run(folder, plan, progress)
    progress.step("Against the engine's own server (medians of the rounds)")
    for name, value in found["ratios"].items():
        progress.say(f"{value:8.2f}  {name}")
    return found


def _overload(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import pressure

    progress = ProgressReporter()
    plan = pressure.Plan(options.placement, options.seconds, options.concurrency)
    with _quiet(options.workdir) as folder:
        found = pressure.overload(folder, plan, progress)
    progress.step(f"{found['goodput']:.3f} of the peak; {found['refused']} clean refusals")
    progress.say(f"other errors: {found['other_errors']}")
    progress.say(f"recovered after {found['recovered_after_s']} s")
    return found


def _streams(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import pressure

    progress = ProgressReporter()
    plan = pressure.Plan(options.placement, concurrency=options.concurrency)
    with _quiet(options.workdir) as folder:
        found = pressure.streams(folder, plan, progress)
    progress.step(f"{found['complete']} of {found['streams']} complete in {found['seconds']} s")
    return found


def _hostile(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import hostile
    from serve_app.bench.attacks import KINDS

    kinds = tuple(options.kind or KINDS)
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise HeadraceError(f"--kind {unknown[0]}: one of {', '.join(KINDS)}")
    progress = ProgressReporter()
    plan = hostile.Plan(options.placement, options.seconds, options.clients, options.engine, kinds)
    progress.step(f"One tenant beside another's attacks: {plan.placement}, {plan.engine} engine")
    with _quiet(options.workdir) as folder:
        found = hostile.run(folder, plan, progress)
    verdict = "held" if found["held"] else f"NOT held: {', '.join(found['not_held'])}"
    progress.step(
        f"worst p99 {found['worst_victim_p99_ms']:.1f} ms, {found['worst_victim_ratio']:.2f} x; "
        f"{found['victim_errors']} errors; {verdict}"
    )
    return found


def _soak(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import soak

    progress = ProgressReporter()
    plan = soak.Plan(options.minutes, options.concurrency, options.placement)
    with _quiet(options.workdir) as folder:
        found = soak.run(folder, plan, progress)
    progress.step(f"{found['requests']} requests, {found['errors']} errors")
    first, last = found["p99_ms"]["first_tenth"], found["p99_ms"]["last_tenth"]
    progress.say(f"p99 {first:.1f} ms in the first tenth of the run, {last:.1f} ms in the last")
    for row in found["growth"][:8]:
        progress.say(f"{row['mib_per_10k']:+7.3f} MiB per 10,000 requests  {row['process']}")
    return found


def _adapters(options: argparse.Namespace) -> dict[str, Any]:
    from serve_app.bench import adapters

    if options.swaps < _FEWEST_SWAPS:
        raise HeadraceError(f"--swaps {options.swaps}: at least {_FEWEST_SWAPS}")
    if options.every < _FASTEST_S:
        raise HeadraceError(f"--every {options.every}: at least {_FASTEST_S}, for rests as long")
    progress = ProgressReporter()
    if options.replicas < 1:
        raise HeadraceError(f"--replicas {options.replicas}: at least 1")
    plan = adapters.Plan.of(
        options.swaps,
        every_s=options.every,
        clients=options.clients,
        replicas=options.replicas,
    )
    with _quiet(options.workdir) as folder:
        found = adapters.run(folder, plan, progress)
    progress.step(
        f"{found['swaps']} swaps on {plan.replicas} engines, {found['failed']} of "
        f"{found['answers']} answers failed"
    )
    progress.say(
        f"{found['right']} as offline, {found['wrong']} of another version than named, "
        f"{found['unlike']} like none"
    )
    for name, unit in (("promote_to_first_token_ms", "ms"), ("prepare_ms", "ms")):
        progress.say(f"{name}: p50 {found[name]['p50']} p99 {found[name]['p99']} {unit}")
    low, high = found["others_p99_ratio_95"]
    progress.say(
        f"{found['others_p99_ratio']} x the p99 at rest ({low} to {high} in 19 of 20 draws of the "
        f"run's blocks), of adapters that stay, with a swap every {plan.every_s:g} s; "
        f"{found['others_p99_ratio_back_to_back']} x with one after another"
    )
    kill = found["kill"]
    progress.say(
        f"{kill['kills']} kills: confirmed after p99 {kill['kill_ms']['p99']} ms, the last answer "
        f"after {kill['last_answer_ms']['p99']} ms; {kill['answered_after']} answered afterwards"
    )
    if not options.no_crowd:
        found["crowd"] = _measure_crowd(options.workdir, crowds.Plan())
    return found


def _crowd(options: argparse.Namespace) -> dict[str, Any]:
    plan = crowds.Plan(options.adapters, options.rounds, options.seconds)
    return _measure_crowd(options.workdir, plan)


def _measure_crowd(workdir: Path, plan: crowds.Plan) -> dict[str, Any]:
    progress = ProgressReporter()
    with _quiet(workdir) as folder:
        found = crowds.run(folder, plan, progress)
    progress.step(
        f"{found['answers']} answers, {found['wrong']} of another adapter, {found['failed']} failed"
    )
    for name, value in found["ratios"].items():
        progress.say(f"{value:6.2f} x  {name}")
    for count, mib in found["memory_mib"].items():
        progress.say(f"{mib:6.0f} MiB with {count} adapters in memory")
    return found


@contextmanager
def _quiet(workdir: Path) -> Iterator[Path]:
    """The working folder; Ray prints its advice on standard output, which goes to a log there."""
    folder = workdir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver.log").open("w", encoding="utf-8") as log, redirect_stdout(log):
        yield folder


if __name__ == "__main__":
    sys.exit(main())
