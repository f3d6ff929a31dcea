"""The command's own mistakes: told at once, in one line, before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.cli.main import _parser, main


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_data_that_is_not_there_is_told_before_a_cluster_starts(
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
