"""The adapter plane on the running cluster: tenants kept apart, keys that end, the kill switch."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from cluster.audit import read_traces, verify
from cluster.launch import local as runtime
from cluster.processes import descendants
from cluster.records.trace import RefusalTrace, RequestTrace, Trace
from cluster.records.usage import TokenUsage
from tests.integration.conftest import Plane
from tests.waiting import wait_for

pytestmark = pytest.mark.integration


def _traces(plane: Plane, tenant: str) -> list[Trace]:
    folder = plane.workdir / "state" / "audit"
    return [trace for trace in read_traces(folder) if trace.tenant == tenant]


def _usage(plane: Plane, tenant: str) -> list[TokenUsage]:
    requests = (one for one in _traces(plane, tenant) if isinstance(one, RequestTrace))
    return [one.usage for one in requests if one.usage is not None]


def test_tenants_are_kept_apart(plane: Plane) -> None:
    focus = plane.focus
    key = plane.do("keys", "issue", "--tenant", "rival", "--alias", "probe", "--duration", "1h")
    client = openai.OpenAI(base_url=plane.base_url, api_key=key["secret"], max_retries=0)
    asked = [{"role": "user", "content": "hello there"}]

    def answers(model: str) -> str:
        return client.chat.completions.create(model=model, messages=asked).model  # type: ignore[arg-type]

    assert focus not in {model.id for model in client.models.list()}
    for model in (focus, f"{focus}@2", f"../{focus}"):
        with pytest.raises(openai.NotFoundError):
            answers(model)
    assert answers("auto") == "headrace-mini"
    refused = [t.requested_model for t in _traces(plane, "rival") if isinstance(t, RefusalTrace)]
    assert refused == [focus, f"{focus}@2", f"../{focus}"]
    plane.do("adapters", "grant", focus, "rival")
    wait_for(lambda: focus in {model.id for model in client.models.list()})
    assert answers(focus) == f"{focus}@2"
    plane.do("adapters", "withdraw", focus, "rival")
    wait_for(lambda: focus not in {model.id for model in client.models.list()})

    def over() -> bool:
        try:
            client.models.list()
        except openai.AuthenticationError:
            return True
        return False

    plane.do("tenants", "suspend", "rival")
    wait_for(over)
    plane.do("tenants", "resume", "rival")
    wait_for(lambda: not over())
    plane.do("keys", "revoke", key["key_id"])
    wait_for(over)
    kinds = [event["kind"] for event in plane.do("events")]
    assert kinds[:6] == [
        *("key.revoked", "tenant.resumed", "tenant.suspended"),
        *("adapter.withdrawn", "adapter.granted", "key.issued"),
    ]


def test_a_killed_adapter_is_refused_everywhere_and_comes_back(plane: Plane) -> None:
    focus = plane.focus
    headers = {"Authorization": f"Bearer {plane.api_key}"}
    url = f"{plane.base_url}/chat/completions"
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
    report = plane.do("kill", focus, "--reason", "a test of the switch")
    for thread in asking:
        thread.join(60)
    assert ended
    assert report["confirmed"]
    assert report["version"] == f"{focus}@2"
    for _ in range(20):
        answer = httpx.post(url, json={**body, "stream": False}, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_killed")
    other = plane.other
    messages = [{"role": "user", "content": "hello"}]
    assert plane.openai.chat.completions.create(
        model=other,
        messages=messages,  # type: ignore[arg-type]
    ).model.startswith(f"{other}@")
    assert plane.do("revive", focus)["current"] == f"{focus}@2"
    wait_for(lambda: httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200)
    again = plane.openai.chat.completions.create(model=focus, messages=messages)  # type: ignore[arg-type]
    assert again.model == f"{focus}@2"
    assert verify(plane.workdir / "state" / "audit").changes > 0


def test_a_rollout_goes_from_shadow_to_promotion(plane: Plane, tmp_path: Path) -> None:
    """Two versions of random weights, one live; whoever asks is answered by either, by name."""
    plane.make_live({"trial": 2}, tmp_path)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "phases:\n"
        "- {percent: 100, shadow: true, min_requests: 10, min_seconds: 0}\n"
        "- {percent: 50, min_requests: 20, min_seconds: 0}\n"
        # Random weights are sure of nothing, and the first ones no more than the second.
        "guardrails: {confidence: 1.0, latency_ratio: 100.0}\n"
    )
    plane.do("rollout", "start", "trial@2", "--plan", str(plan))
    answered: dict[str, list[str]] = {}
    asked = 0

    def promoted() -> bool:
        nonlocal asked
        for number in range(10):
            asked += 1
            answer = plane.openai.chat.completions.create(
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
    [found] = plane.do("rollout", "status", "--limit", "1")
    assert found["candidate"] == "trial@2"
    assert found["status"] in {"draining", "promoted"}
    assert found["seen"]["candidate"]["requests"] >= 20


def test_a_bill_agrees_with_the_audit_log_to_the_token(plane: Plane) -> None:
    plane.openai.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "what does this cost"}]
    )
    headers = {"Authorization": f"Bearer {plane.api_key}"}
    claimed = {"annotator": "ann", "limit": 1}
    answer = httpx.post(f"{plane.base_url}/labels/claim", json=claimed, headers=headers)
    [task] = answer.json()["tasks"]
    label = {"trace_id": task["trace_id"], "adapter": plane.focus, "answer": "x"}
    given = {"labels": [{**label, "annotator": "ann"}]}
    assert httpx.post(f"{plane.base_url}/labels", json=given, headers=headers).status_code == 200
    bill = plane.do("usage", "--tenant", "demo")
    traces = _usage(plane, "demo")
    lines = bill["lines"]
    assert sum(line["requests"] for line in lines) == len(traces)
    assert sum(line["input_tokens"] for line in lines) == sum(t.input_tokens for t in traces)
    written = sum(trace.output_tokens for trace in traces)
    assert sum(line["output_tokens"] for line in lines) == written
    assert bill["training_seconds"] > 0
    assert bill["labels"] > 0
    assert bill["adapter_hours"] > 0


def test_a_tenant_stays_within_its_limits(plane: Plane) -> None:
    """Requests of two kinds side by side, some of them given up: no bound is broken."""
    key = plane.do("keys", "issue", "--tenant", "limited", "--rpm", "6", "--tpm", "100000")
    url = f"{plane.base_url}/chat/completions"
    headers = {"Authorization": f"Bearer {key['secret']}"}
    statuses: list[int] = []

    def ask(number: int) -> None:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "max_tokens": 8,
            "stream": bool(number % 2),
        }
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
            statuses.append(answer.status_code)
            if number % 3:
                answer.read()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert sorted(statuses) == [200] * 6 + [429] * 14
    spent = wait_for_bill(plane, "limited", requests=6)
    used = _usage(plane, "limited")
    assert sum(line["input_tokens"] for line in spent["lines"]) == sum(
        one.input_tokens for one in used
    )
    refused = [t for t in _traces(plane, "limited") if isinstance(t, RefusalTrace)]
    assert any(trace.refusal.status == 429 for trace in refused)
    assert plane.do("usage", "limit", "limited", "--usd", "0")["tenant:limited"]["max_usd"] == 0
    assert plane.do("keys", "limit", key["key_id"])["limits"]["rpm"] == 6
    assert plane.do("keys", "limit", key["key_id"], "--none")["limits"]["rpm"] is None

    def out_of_money() -> bool:
        answer = httpx.post(url, json={"model": "auto", "messages": []}, headers=headers)
        assert answer.status_code in (400, 429)
        body = {"model": "auto", "messages": [{"role": "user", "content": "one more"}]}
        answer = httpx.post(url, json=body, headers=headers, timeout=60)
        return bool(answer.status_code == 429 and "insufficient_quota" in answer.text)

    wait_for(out_of_money)


def wait_for_bill(plane: Plane, tenant: str, *, requests: int) -> Any:
    found: list[Any] = []

    def there() -> bool:
        found[:] = [plane.do("usage", "--tenant", tenant)]
        return bool(sum(line["requests"] for line in found[0]["lines"]) >= requests)

    wait_for(there)
    assert sum(line["requests"] for line in found[0]["lines"]) == requests
    return found[0]


def test_the_admin_api_manages_a_tenant(plane: Plane, tmp_path: Path) -> None:
    root = plane.base_url.removesuffix("/v1")
    admin = plane.do("keys", "issue", "--tenant", "demo", "--role", "admin")["secret"]
    headers = {"Authorization": f"Bearer {admin}"}

    def post(path: str, body: Any) -> httpx.Response:
        return httpx.post(root + path, json=body, headers=headers, timeout=60)

    made = post("/key/generate", {"key_alias": "till", "duration": "1h", "rpm_limit": 100})
    key = made.json()
    answer = openai.OpenAI(base_url=f"{root}/v1", api_key=key["key"]).chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "hello"}]
    )
    assert answer.choices
    assert post("/key/generate", {"team_id": "rival"}).status_code == 404
    assert post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/"}).status_code == 404
    prices = tmp_path / "prices.yaml"
    prices.write_text("default: {input: 1.0, output: 3.0}\nadapter_hour: 0.5\n")
    plane.do("usage", "prices", str(prices))
    bill = httpx.get(f"{root}/v1/usage?since=1d", headers=headers).json()
    assert bill["tenant"] == "demo"
    assert bill["usd"] >= 0
    adapters = httpx.get(f"{root}/v1/adapters", headers=headers).json()["data"]
    assert {row["state"] for row in adapters} >= {"live"}
    assert post("/key/delete", {"keys": [key["token_id"]]}).status_code == 200


def test_nothing_listens_beyond_loopback_and_files_are_private(plane: Plane) -> None:
    cluster = runtime.running(plane.workdir)
    assert cluster is not None
    listening = []
    for pid in descendants([cluster.pid]):
        try:
            found = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        listening += [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]
    assert len(listening) > 10
    assert [ip for ip in listening if ip.removeprefix("::ffff:") != "127.0.0.1"] == []
    ours = [plane.workdir / "registry.db", *(plane.workdir / "state" / "audit").glob("*.jsonl")]
    assert len(ours) > 2
    for path in (*ours, runtime.ray_logs(plane.workdir).parents[2], plane.workdir):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_log_is_what_the_registry_knows(plane: Plane) -> None:
    done = plane.command("verify", "--workdir", str(plane.workdir), "--json")
    found = json.loads(done.stdout)
    assert (found["verified"], found["compared"], found["faults"]) == (True, True, [])
