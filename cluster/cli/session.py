"""What verbs that speak to a running control plane share: the connection, and how they print."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from contextlib import redirect_stdout
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.printing import printable
from cluster.types import AdapterVersion, checked_name

if TYPE_CHECKING:
    from cluster.control.client import ControlClient

Verbs = Any
"""What `argparse` gives to add verbs to; it has no public name."""


def client(options: argparse.Namespace) -> ControlClient:
    """The control plane of the cluster that runs from `--workdir`.

    Raises:
        ConflictError: none does.
    """
    from cluster.launch import local as runtime

    cluster = runtime.require_cluster(options.workdir.resolve())
    # Ray prints its advice on standard output, where a reader of ours expects only the answer.
    with redirect_stdout(sys.stderr):
        runtime.attach(cluster)
        # Ray reads its authentication settings when it is imported, so it comes after them.
        from cluster.control.client import ControlClient

        return ControlClient(f"operator {getpass.getuser()}")


def say(options: argparse.Namespace, found: object, lines: list[str]) -> int:
    """Print one JSON document, or the lines for people."""
    print(json.dumps(found) if options.json else "\n".join(map(printable, lines)))
    return 0


def named_version(text: str) -> AdapterVersion:
    """The version that `text` names.

    Raises:
        UserError: it is not `name@number`.
    """
    from cluster.errors import UserError

    try:
        return AdapterVersion.parse(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def named_tenant(text: str) -> str:
    """The tenant that `text` names.

    Raises:
        UserError: it is not a name.
    """
    return _named("tenant", text)


def named_adapter(text: str) -> str:
    """The adapter that `text` names.

    Raises:
        UserError: it is not a name.
    """
    return _named("adapter", text)


def _named(kind: str, text: str) -> str:
    from cluster.errors import UserError

    try:
        return checked_name(text)
    except ValueError as error:
        raise UserError(f"the {kind}: {error}") from error


def at(moment: float) -> str:
    """A moment as people read it, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
