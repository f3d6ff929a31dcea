"""The command's own mistakes: told at once, in one line, before anything is started."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from cluster.audit import ChainWriter
from cluster.cli.main import _parser, main
from cluster.cli.session import say
from cluster.records.limits import Limits
from cluster.registry import writers
from cluster.registry.db import open_database
from tests.fakes.control import ControlDouble


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_missing_data_is_reported_before_a_cluster_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    arguments = ["demo", "--workdir", str(work), "--port", str(_free_port())]
    assert main([*arguments, "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    assert "holds 0 domains" in capsys.readouterr().err
    assert not (work / "ray.log").exists()


def test_a_folder_that_is_no_audit_log_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert "is not an audit folder" in capsys.readouterr().err


def test_down_without_a_cluster_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing was running\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "issue", "--tenant", "A B"], "not a valid name"),
        (["keys", "issue", "--tenant", "acme", "--duration", "1w"], "write 90s"),
        (["keys", "issue", "--tenant", "acme", "--attribute", "tier"], "NAME=VALUE"),
        (["keys", "issue", "--tenant", "acme", "--model", "../x"], "not a valid name"),
        (["rollout", "start", "care"], "write name@number"),
        (["rollout", "start", "care@2", "--set", "phases=[]"], "phases"),
        (["rollout", "start", "care@2", "--set", "guardrails.speed=1"], "speed"),
        (["rollout", "start", "care@2", "--plan", "nowhere.yaml"], "does not exist"),
        (["rollout", "start", "care@2", "--set", "a=[1"], "not YAML"),
        (["adapters", "register", ".", "--tenant", "A B"], "not a valid name"),
        (["import", ".", "--tenant", "A B"], "not a valid name"),
        (["usage", "limit", "--rpm", "5"], "say which tenant"),
        (["revive", "care", "--version", "0"], "must be 1 or more"),
        (["kill", "care", "--reason", "x"], "no cluster runs"),
        (["events", "--json"], "no cluster runs"),
        (["keys", "--json"], "no cluster runs"),
        (["rollout"], "no cluster runs"),
        (["rollout", "promote", "care"], "no cluster runs"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--workdir", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("headrace: ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [("keys", "list"), ("rollout", "status"), ("adapters", "card x@1"), ("usage", "limit")],
)
def test_an_option_counts_before_and_after_an_action(before: str, after: str) -> None:
    given = ["--json", "--workdir", "/elsewhere"]
    for arguments in ([before, *given, *after.split()], [before, *after.split(), *given]):
        options = _parser().parse_args(arguments)
        assert (options.json, options.workdir) == (True, Path("/elsewhere"))
    assert _parser().parse_args([before, *after.split()]).json is False


class Limited:
    """The control plane's limits."""

    def __init__(self) -> None:
        self.kept = {"tenant:acme": Limits(max_usd=100.0, period_s=86_400.0)}

    async def all_limits(self) -> dict[str, Limits]:
        return self.kept

    async def set_limits(self, scope: str, bounds: Limits, _by: str, *, by_operator: bool) -> None:
        assert by_operator
        self.kept[scope] = bounds


@pytest.mark.parametrize("verb", ["keys", "usage"])
def test_a_limit_that_is_not_named_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    plane = Limited()
    monkeypatch.setattr("cluster.cli.tenancy.client", lambda _options: ControlDouble(ledger=plane))
    whose, scope = ("k1", "key:k1") if verb == "keys" else ("acme", "tenant:acme")
    plane.kept = {scope: Limits(max_usd=100.0, period_s=86_400.0)}
    before = dict(plane.kept)
    assert main([verb, "limit", whose]) == 0
    assert "at most 100 $ every 1d" in capsys.readouterr().out
    assert plane.kept == before
    assert main([verb, "limit", whose, "--rpm", "600"]) == 0
    assert plane.kept[scope] == Limits(rpm=600, max_usd=100.0, period_s=86_400.0)
    assert main([verb, "limit", whose, "--none", "--rpm", "5"]) == 2
    assert main([verb, "limit", whose, "--rpm", "0"]) == 2
    assert plane.kept[scope].rpm == 600
    assert main([verb, "limit", whose, "--none"]) == 0
    assert not plane.kept[scope].bounded
    assert main([verb, "limit", whose, "--period", "30d"]) == 2
    assert "say how much with --usd" in capsys.readouterr().err


def test_what_tenants_name_things_reaches_no_terminal_as_a_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = argparse.Namespace(json=False)
    say(options, {}, ["name \x1b[31m\x9b2J\rred\nnext \u202e \u2028 café"])
    shown = capsys.readouterr().out
    assert shown == "name \\x1b[31m\\x9b2J\\rred\\nnext \\u202e \\u2028 café\n"


def test_verify_takes_the_workdir_as_other_verbs_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _logged(tmp_path)
    assert main(["verify", "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 records, 0 changes, chain verified\n"
    folder = str(tmp_path / "state" / "audit")
    assert main(["verify", folder]) == 0
    assert "not compared with a registry" in capsys.readouterr().out
    assert (
        main(["verify", folder, "--json", "--registry", f"sqlite:///{tmp_path}/registry.db"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["compared"] is True


def _logged(workdir: Path) -> None:
    """A registry and a log of one record."""
    log = ChainWriter(workdir / "state" / "audit", "gateway")
    log.append([{"trace_id": "tr-1"}])
    engine = open_database(f"sqlite:///{workdir / 'registry.db'}")
    with Session(engine) as tx, tx.begin():
        writers.register(tx, "gateway", changes=False, now=1.0)
        writers.advance(tx, "gateway", log.head, now=1.0)
    engine.dispose()


def test_verify_misses_what_is_on_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _logged(tmp_path)
    for name in ("chain", "traces"):
        (tmp_path / "state" / "audit" / f"{name}-gateway.jsonl").unlink()
    assert main(["verify", "--workdir", str(tmp_path)]) == 1
    assert "gateway.jsonl: 1 entry on record, none found" in capsys.readouterr().out
    (tmp_path / "registry.db").unlink()
    assert main(["verify", "--workdir", str(tmp_path)]) == 2
    assert "there is no registry at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"), [(["verify", "--json"], 141), (["--help"], 0), (["usage", "--help"], 0)]
)
def test_a_reader_that_has_had_enough_is_no_error(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    if arguments[0] == "verify":
        _logged(tmp_path)
        arguments = [*arguments, "--workdir", str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli.main", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == code
