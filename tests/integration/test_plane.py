"""The adapter plane on the running cluster: tenants kept apart, keys that end, the kill switch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.audit import read_traces, verify
from tests.conftest import REPOSITORY
from tests.integration.conftest import Wheel
from tests.waiting import wait_for

pytestmark = pytest.mark.integration


def _do(wheel: Wheel, *arguments: str) -> Any:
    """What an operator command says, as JSON."""
    done = wheel.command(*arguments, "--workdir", str(wheel.workdir), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _traces(wheel: Wheel, tenant: str) -> list[dict[str, Any]]:
    folder = wheel.workdir / "state" / "audit"
    return [trace for trace in read_traces(folder) if trace["tenant"] == tenant]


def test_tenants_are_kept_apart(wheel: Wheel) -> None:
    focus = wheel.report["swap"]["adapter"]
    key = _do(wheel, "keys", "issue", "--tenant", "rival", "--alias", "probe", "--duration", "1h")
    client = openai.OpenAI(
        base_url=wheel.report["serving"]["base_url"], api_key=key["secret"], max_retries=0
    )
    asked = [{"role": "user", "content": "hello there"}]

    def answers(model: str) -> str:
        return client.chat.completions.create(model=model, messages=asked).model  # type: ignore[arg-type]

    assert focus not in {model.id for model in client.models.list()}
    for model in (focus, f"{focus}@2", f"../{focus}"):
        with pytest.raises(openai.NotFoundError):
            answers(model)
    assert answers("auto") == "headrace-mini"
    refused = [t["requested_model"] for t in _traces(wheel, "rival") if t["block"]]
    assert refused == [focus, f"{focus}@2", f"../{focus}"]
    _do(wheel, "adapters", "grant", focus, "rival")
    wait_for(lambda: focus in {model.id for model in client.models.list()})
    assert answers(focus) == f"{focus}@2"
    _do(wheel, "adapters", "withdraw", focus, "rival")
    wait_for(lambda: focus not in {model.id for model in client.models.list()})
    _do(wheel, "keys", "revoke", key["key_id"])

    def over() -> bool:
        try:
            client.models.list()
        except openai.AuthenticationError:
            return True
        return False

    wait_for(over)
    kinds = [event["kind"] for event in _do(wheel, "events")]
    assert kinds[:4] == ["key.revoked", "adapter.withdrawn", "adapter.granted", "key.issued"]


def test_a_killed_adapter_is_refused_everywhere_and_comes_back(wheel: Wheel) -> None:
    focus = wheel.report["swap"]["adapter"]
    serving = wheel.report["serving"]
    headers = {"Authorization": f"Bearer {serving['api_key']}"}
    url = f"{serving['base_url']}/chat/completions"
    body = {
        "model": focus,
        "messages": [{"role": "user", "content": "tell me everything"}],
        "max_tokens": 200,
        "temperature": 1.0,
        "stream": True,
    }
    ended: list[str] = []

    def ask_until_refused() -> None:
        while not ended:
            answer = httpx.post(url, json=body, headers=headers, timeout=60).text
            if "adapter_killed" in answer:
                ended.append(answer)

    asking = [threading.Thread(target=ask_until_refused) for _ in range(3)]
    for thread in asking:
        thread.start()
    report = _do(wheel, "kill", focus, "--reason", "a test of the switch")
    for thread in asking:
        thread.join(60)
    assert ended
    assert report["confirmed"]
    assert report["version"] == f"{focus}@2"
    for _ in range(20):
        answer = httpx.post(url, json={**body, "stream": False}, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_killed")
    other = next(a["name"] for a in wheel.report["adapters"] if a["name"] != focus)
    messages = [{"role": "user", "content": "hello"}]
    assert wheel.openai.chat.completions.create(
        model=other,
        messages=messages,  # type: ignore[arg-type]
    ).model.startswith(f"{other}@")
    assert _do(wheel, "revive", focus)["current"] == f"{focus}@2"
    wait_for(lambda: httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200)
    again = wheel.openai.chat.completions.create(model=focus, messages=messages)  # type: ignore[arg-type]
    assert again.model == f"{focus}@2"
    assert verify(wheel.workdir / "state" / "audit").changes > 0


def test_a_rollout_goes_from_shadow_to_promotion(wheel: Wheel, tmp_path: Path) -> None:
    """Two versions of random weights, one live; whoever asks is answered by either, by name."""
    base = REPOSITORY / "cluster/models/headrace-mini"
    subprocess.run(
        [
            *(sys.executable, "-m", "serve_app.bench.versions", "--base", str(base)),
            *("--out", str(tmp_path), "trial:2"),
        ],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=300,
    )
    for version in (1, 2):
        _do(
            wheel,
            "adapters",
            "register",
            str(tmp_path / "trial" / str(version)),
            "--tenant",
            "demo",
        )
        assert _do(wheel, "adapters", "gate", f"trial@{version}")["passed"]
        if version == 1:
            assert _do(wheel, "adapters", "promote", "trial@1")["current"] == "trial@1"
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "phases:\n"
        "- {percent: 100, shadow: true, min_requests: 10, min_seconds: 0}\n"
        "- {percent: 50, min_requests: 20, min_seconds: 0}\n"
        # Random weights are sure of nothing, and the first ones no more than the second.
        "guardrails: {confidence: 1.0, latency_ratio: 100.0}\n"
    )
    _do(wheel, "rollout", "start", "trial@2", "--plan", str(plan))
    answered: dict[str, list[str]] = {}
    asked = 0

    def promoted() -> bool:
        nonlocal asked
        for number in range(10):
            asked += 1
            answer = wheel.openai.chat.completions.create(
                model="trial",
                messages=[{"role": "user", "content": f"question {asked}"}],
                user=f"u{number}",
                max_tokens=4,
            )
            answered.setdefault(f"u{number}", []).append(answer.model)
        return {models[-1] for models in answered.values()} == {"trial@2"}

    wait_for(promoted)
    for models in answered.values():
        assert models == sorted(models), "a user was sent back to the former version"
    assert {models[0] for models in answered.values()} == {"trial@1"}, "the shadow was shown"
    [found] = _do(wheel, "rollout", "status", "--limit", "1")
    assert found["candidate"] == "trial@2"
    assert found["status"] in {"draining", "promoted"}
    assert found["seen"]["candidate"]["requests"] >= 20


def test_a_bill_agrees_with_the_audit_log_to_the_token(wheel: Wheel) -> None:
    wheel.openai.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "what does this cost"}]
    )
    bill = _do(wheel, "usage", "--tenant", "demo", "--settle")
    traces = [trace["generation"] for trace in _traces(wheel, "demo") if trace["generation"]]
    lines = bill["lines"]
    assert sum(line["requests"] for line in lines) == len(traces)
    assert sum(line["input_tokens"] for line in lines) == sum(t["prompt_tokens"] for t in traces)
    written = sum(trace["completion_tokens"] for trace in traces)
    assert sum(line["output_tokens"] for line in lines) == written
    assert bill["training_seconds"] > 0
    assert bill["labels"] > 0


def test_a_version_has_a_card(wheel: Wheel) -> None:
    focus = wheel.report["swap"]["adapter"]
    card = _do(wheel, "adapters", "card", f"{focus}@2")["card"]
    assert "license: apache-2.0" in card
    assert f"| against {focus}@1 |" in card
    assert "labelled production traces" in card
