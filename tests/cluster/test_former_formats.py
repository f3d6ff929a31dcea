"""What the former version wrote, registry schema 0005 and trace version 1, is read as it was."""

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.audit import CONTROL, ChainWriter, read_traces, verify
from cluster.control.plane import ControlPlane
from cluster.errors import DataError
from cluster.records.trace import (
    FeedbackTrace,
    Refusal,
    RefusalTrace,
    RequestTrace,
    Span,
    decode,
    decode_metered,
    document,
    metered,
)
from cluster.records.usage import TokenUsage
from cluster.types import AdapterVersion, VersionState
from tests.conftest import REPOSITORY
from tests.fakes.fleet import FakeFleet
from tests.fakes.traces import request_trace

FORMER = REPOSITORY / "tests" / "fixtures" / "schema_0005"
EXPECTED: dict[str, Any] = json.loads((FORMER / "expected.json").read_text())


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the former version; its paths are relative."""
    folder = tmp_path / "former"
    shutil.copytree(FORMER, folder)
    with sqlite3.connect(folder / "registry.db") as connection:
        connection.executescript((folder / "registry.sql").read_text())
    connection.close()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
async def control(former: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane("sqlite:///registry.db", FakeFleet(), max_rank=32, audit=Path("audit"))
    yield plane
    plane.close()


async def test_a_former_registry_migrates_and_verifies(control: ControlPlane) -> None:
    states = {str(record.id): record.state for record in await control.adapters.listed()}
    assert states == {
        "inventory@1": VersionState.LIVE,
        "inventory@2": VersionState.REJECTED,
        "inventory@3": VersionState.CANDIDATE,
    }
    assert (await control.serving.table()).live["inventory"].label == "inventory@1"
    found = verify(Path("audit"), *await control.usage.writers())
    assert found.faults == []
    assert found.records == 8
    [dataset] = await control.datasets.listed()
    assert (dataset.name, dataset.rows) == ("inventory", 2)


async def test_a_former_log_bills_as_it_did(control: ControlPlane) -> None:
    # Whatever was not delivered to the meter is found in the log.
    bill = await control.usage.bill("acme", 0.0, 4e9, None)
    assert bill == EXPECTED["bill"]
    assert await control.labels.counts("acme") == EXPECTED["labels"]
    [label] = await control.labels.given("acme", "inventory")
    [expected] = EXPECTED["labelled"]
    assert {name: getattr(label, name) for name in expected} == expected
    assert label.rationale == "r"


async def test_a_former_candidate_passes_the_gate_and_serves(control: ControlPlane) -> None:
    version = AdapterVersion("inventory", 3)
    assert (await control.evaluations.judge(version, "test")).passed
    assert (await control.serving.promote(version, "test")).previous == "inventory@1"


def test_former_traces_become_their_kind(former: Path) -> None:
    traces = list(read_traces(former / "audit"))
    assert [type(trace) for trace in traces] == [RequestTrace] * 6 + [RefusalTrace, FeedbackTrace]
    request, refusal, feedback = traces[0], traces[6], traces[7]
    assert isinstance(request, RequestTrace)
    assert request.schema == 1
    assert request.usage == TokenUsage("inventory@1", 21, 6)
    assert request.route is not None
    assert request.route.intent == "order_status"
    # Version 1 kept durations, not when a span began.
    assert [(span.name, span.ms, span.start_ms) for span in request.spans[:1]] == [
        ("data_prep", 0.5, None)
    ]
    assert isinstance(refusal, RefusalTrace)
    assert (refusal.refusal.status, refusal.path) == (404, "/v1/chat/completions")
    assert refusal.unrecorded_before == 2
    assert isinstance(feedback, FeedbackTrace)
    assert (feedback.version, feedback.outcomes) == ("inventory@1", {"disliked": True, "rating": 2})
    assert feedback.about == "tr-00000000000000000000000000000003"


def test_every_former_line_is_metered_alike_from_its_bytes_and_its_trace(former: Path) -> None:
    for line in (former / "audit" / "traces-gateway-before.jsonl").read_bytes().splitlines():
        assert metered(decode(line)) == decode_metered(line)


@pytest.mark.parametrize("text", ["plain", "a \ud800 lone surrogate"])
def test_a_trace_comes_back_as_it_was_written(tmp_path: Path, text: str) -> None:
    trace = request_trace(
        usage=None,
        messages=[{"role": "user", "content": text}],
        refusal=Refusal(503, "stage_unavailable", "policy is late"),
        spans=[Span("policy", 1.5, 0.5), Span("care@1", 2.0, 3.0, parent="generation")],
    )
    log = ChainWriter(tmp_path, "w")
    log.append([document(trace)])
    log.close()
    assert list(read_traces(tmp_path)) == [trace]
    [line] = (tmp_path / "traces-w.jsonl").read_bytes().splitlines()
    assert decode_metered(line).usage is None
    assert verify(tmp_path).verified


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"null", b"[]", b"{}", b"{", b'{"kind": "request"}', b'{"kind": "other"}'),
        b'{"kind":"request","trace_id":"\xff"}',
        *(b'{"schema": 3}', b'{"messages": [], "metadata": {"feedback_on": "x"}}', b"[" * 9999),
    ],
)
def test_what_is_no_trace_is_refused(line: bytes) -> None:
    with pytest.raises(DataError):
        decode(line)


def test_the_chain_of_changes_is_read_as_well(former: Path) -> None:
    assert list((former / "audit" / CONTROL).glob("traces-*.jsonl"))
