"""The `headrace` command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from cluster.cli import plane
from cluster.errors import HeadraceError, one_line
from cluster.printing import printable

#: The scripts may be called from any folder.
_REPOSITORY = Path(__file__).resolve().parents[2]
_CONFIG = _REPOSITORY / "configs" / "local" / "demo.yaml"
_WORKDIR = _REPOSITORY / ".headrace" / "demo"
#: The exit code of a process that a closed pipe ended: 128 and SIGPIPE's number.
_SIGPIPE = 141


def main(arguments: list[str] | None = None) -> int:
    """Parse and run one verb; a mistake the user can mend is one line and exit code 2."""
    try:
        options = _parser().parse_args(arguments)
        result: int = options.run(options)
        sys.stdout.flush()
    except HeadraceError as error:
        print(f"headrace: {printable(one_line(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has had enough. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGPIPE
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace", description="Turn traffic into models you own."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    demo = verbs.add_parser("demo", help="turn the wheel once: traffic in, a better model out")
    demo.add_argument("--data", help="MultiDoGO folder; without it, a generated retail workload")
    demo.add_argument("--report", type=Path, help="where to write the JSON report")
    demo.add_argument("--serve", action="store_true", help="leave the cluster up afterwards")
    demo.add_argument("--port", type=int, default=8000, help="HTTP port of the gateway")
    demo.add_argument("--config", type=Path, default=_CONFIG)
    demo.set_defaults(run=_demo)
    up = verbs.add_parser("up", help="serve what an earlier run made, until it is stopped")
    up.add_argument("--port", type=int, default=8000, help="HTTP port of the gateway")
    up.add_argument("--config", type=Path, default=_CONFIG)
    up.set_defaults(run=_up)
    down = verbs.add_parser("down", help="stop the cluster that `demo --serve` or `up` left up")
    down.set_defaults(run=_down)
    verify = verbs.add_parser("verify", help="verify an audit log offline")
    verify.add_argument(
        "folder", type=Path, nargs="?", help="of the log; default: that of --workdir"
    )
    verify.add_argument(
        "--registry",
        metavar="URL",
        help="what it is compared with; default: the SQLite registry of --workdir",
    )
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(run=_verify)
    parser.set_defaults(json=False, workdir=_WORKDIR)
    plane.add_verbs(verbs)
    for verb in (demo, up, down, verify):
        verb.add_argument("--workdir", type=Path, default=_WORKDIR)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from cluster.demo.run import run

    return run(
        config=options.config,
        workdir=options.workdir,
        data=options.data,
        port=options.port,
        report=options.report,
        serve=options.serve,
    )


def _up(options: argparse.Namespace) -> int:
    from cluster.config import load
    from cluster.demo.config import DemoConfig
    from cluster.launch.up import run

    # The same file as the demonstration's, whose folder it serves again.
    return run(config=load(DemoConfig, options.config), workdir=options.workdir, port=options.port)


def _down(options: argparse.Namespace) -> int:
    from cluster.launch import local as runtime

    stopped = runtime.stop(options.workdir.resolve())
    print("stopped" if stopped else "nothing was running")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from cluster.audit import Verification, verify
    from cluster.registry.writers import read_heads

    folder = options.folder or options.workdir / "state" / "audit"
    if not folder.is_dir():
        raise HeadraceError(f"{folder} is not an audit folder")
    registry, beside = options.registry, options.workdir / "registry.db"
    if registry is None and options.folder is None:
        registry = f"sqlite:///{beside}"
    # The registry first: what is written meanwhile is in the log and may not be in it.
    heads = (None, None) if registry is None else read_heads(registry)
    found: Verification = verify(folder, *heads)
    if options.json:
        rows = {"records": found.records, "changes": found.changes}
        compared = {"compared": registry is not None}
        print(json.dumps({**rows, "verified": found.verified, **compared, "faults": found.faults}))
    else:
        verdict = "chain verified" if found.verified else "NOT verified"
        print(f"{found.records} records, {found.changes} changes, {verdict}")
        for fault in found.faults[:20]:
            print(f"  {printable(fault)}")
        if registry is None:
            print("  not compared with a registry (--registry URL): what is missing was not seen")
    return 0 if found.verified else 1


if __name__ == "__main__":
    sys.exit(main())
