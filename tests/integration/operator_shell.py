"""Runs operator commands in one process that stays attached to the cluster: a command a line.

Attaching to Ray takes seconds; a test run gives dozens of commands. Started by `running.Operator`.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from cluster.cli import session
from cluster.cli.main import main

_client = session.client
_kept: list[object] = []


def _attached(options):  # type: ignore[no-untyped-def]
    if not _kept:
        _kept.append(_client(options))
    return _kept[0]


def _run(arguments: list[str]) -> dict[str, object]:
    output, errors = StringIO(), StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse's
            code = int(error.code or 0)
    return {"code": code, "output": output.getvalue(), "errors": errors.getvalue()}


if __name__ == "__main__":
    session.client = _attached
    for module in ("plane", "tenancy", "bundles"):
        sys.modules[f"cluster.cli.{module}"].client = _attached  # type: ignore[attr-defined]
    answers = sys.stdout
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)
