"""What dies in the middle of a change: it is refused or goes on, and nothing is routed wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from cluster.processes import alive, command
from tests.integration.conftest import Plane
from tests.waiting import wait_for

pytestmark = pytest.mark.integration


def _pids(title: str) -> list[int]:
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in found if title in command(pid)]


class Asking:
    """Asks for one adapter again and again, and notes every status and who answered."""

    def __init__(self, plane: Plane, model: str) -> None:
        self._url = f"{plane.base_url}/chat/completions"
        self._headers = {"Authorization": f"Bearer {plane.api_key}"}
        self._model = model
        self.statuses: list[int] = []
        self.answered: list[str] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)

    def ask(self) -> int:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 4,
            "user": f"u{len(self.statuses) % 20}",
        }
        try:
            answer = httpx.post(self._url, json=body, headers=self._headers, timeout=30)
        except httpx.HTTPError:
            return 0
        if answer.status_code == 200:
            self.answered.append(answer.json()["model"])
        return answer.status_code

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.statuses.append(self.ask())
            time.sleep(0.1)


def test_an_engine_killed_in_the_middle_of_a_swap_leaves_the_live_version(
    plane: Plane, tmp_path: Path
) -> None:
    plane.make_live({"halfway": 2}, tmp_path)
    [replica] = _pids("ray::ServeReplica:headrace:engine")
    [core] = _pids("VLLM::EngineCore")
    with Asking(plane, "halfway") as asking:
        wait_for(lambda: 200 in asking.statuses)
        os.kill(core, signal.SIGSTOP)  # the swap cannot get past its proof
        outcome: list[tuple[int, str]] = []

        def promote() -> None:
            done = plane.command(
                *("adapters", "promote", "halfway@2", "--workdir", str(plane.workdir))
            )
            outcome.append((done.returncode, done.stderr))

        promoting = threading.Thread(target=promote)
        promoting.start()
        time.sleep(5)  # the command takes two seconds to come to the control plane
        assert not outcome, "it must be under way"
        for pid in (core, replica):
            os.kill(pid, signal.SIGKILL)
        promoting.join(120)
        assert outcome
        code, complaint = outcome[0]
        assert code == 2, complaint
        assert complaint.startswith("headrace: "), complaint
        wait_for(lambda: asking.ask() == 200, seconds=120)
        assert set(asking.answered) == {"halfway@1"}
        states = {f"{a['name']}@{a['version']}": a["state"] for a in plane.do("adapters")}
        assert (states["halfway@1"], states["halfway@2"]) == ("live", "passed")
        assert plane.do("adapters", "promote", "halfway@2")["current"] == "halfway@2"
        wait_for(lambda: asking.ask() == 200 and asking.answered[-1] == "halfway@2")
        switched = asking.answered.index("halfway@2")
        assert set(asking.answered[switched:]) == {"halfway@2"}


def test_a_control_plane_killed_in_the_middle_of_a_rollout_goes_on_with_it(
    plane: Plane, tmp_path: Path
) -> None:
    plane.make_live({"steady": 2}, tmp_path)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "phases:\n"
        "- {percent: 50, min_requests: 25, min_seconds: 0}\n"
        "- {percent: 80, min_requests: 25, min_seconds: 0}\n"
        "guardrails: {confidence: 1.0, latency_ratio: 1000.0, error_rate: 1.0}\n"
    )
    plane.do("rollout", "start", "steady@2", "--plan", str(plan))
    with Asking(plane, "steady") as asking:
        wait_for(lambda: "steady@2" in asking.answered, seconds=60)
        [control] = _pids("ray::ControlPlane")
        os.kill(control, signal.SIGKILL)
        wait_for(lambda: not alive(control))
        before = len(asking.answered)

        def promoted() -> bool:
            done = plane.command(
                *("rollout", "status", "--limit", "1", "--json"),
                *("--workdir", str(plane.workdir)),
            )
            return done.returncode == 0 and '"promoted"' in done.stdout

        wait_for(promoted, seconds=180)
        wait_for(lambda: asking.answered[-20:] == ["steady@2"] * 20, seconds=60)
    assert set(asking.answered[before:]) <= {"steady@1", "steady@2"}
    assert asking.statuses.count(200) >= 0.8 * len(asking.statuses)
    [event] = [
        event
        for event in plane.do("events", "--limit", "200")
        if event["kind"] == "version.live" and event["subject"] == "steady@2"
    ]
    assert event["actor"] == "rollout controller"
