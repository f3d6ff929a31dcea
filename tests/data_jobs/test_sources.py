import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.answer import parse
from cluster.errors import DataError
from cluster.records.labels import Label
from cluster.records.trace import document
from data_jobs.rows import from_history, from_trace
from data_jobs.sources.multidogo import read_workload
from data_jobs.sources.retail import generate_workload
from tests.fakes.traces import request_trace

HEADER = "conversationId\tturnNumber\tutteranceId\tutterance\tslot-labels\tintent\n"
DOMAINS = ("alpha", "beta", "gamma")


def _row(number: int, text: str = "my name is bob", labels: str = "O O O name") -> str:
    return f"c\t{number}\tc-{number}\t{text}\t{labels}\tcontentonly\n"


def _folder(tmp_path: Path, train: str) -> Path:
    for domain in DOMAINS:
        for split, body in (("train", train), ("dev", _row(900))):
            path = tmp_path / f"{domain}.{split}.tsv.gz"
            path.write_bytes(gzip.compress((HEADER + body).encode()))
    return tmp_path


def test_turns_and_their_slots_are_read(tmp_path: Path) -> None:
    text = "fly to new york today"
    labels = "O O city city date"
    found = read_workload(_folder(tmp_path, _row(1, text, labels)), DOMAINS)
    turn = found.train["alpha"][0]
    assert turn.answer.slots == {"city": ["new york"], "date": ["today"]}
    assert (turn.answer.intent, turn.text, found.broken) == ("contentonly", text, [])


def test_broken_rows_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    body = (
        _row(1) + "only\tthree\tcells\n" + _row(2, "two words", "O") + _row(3, " ", "O") + _row(4)
    )
    found = read_workload(_folder(tmp_path, body), DOMAINS)
    assert [turn.id for turn in found.train["alpha"]] == ["c-1", "c-4"]
    mine = [fault for fault in found.broken if fault.file == "alpha.train.tsv.gz"]
    assert [(fault.line, fault.reason.split()[0]) for fault in mine] == [
        (3, "3"),
        (4, "the"),
        (5, "empty"),
    ]


def test_a_held_out_turn_never_trains(tmp_path: Path) -> None:
    found = read_workload(_folder(tmp_path, _row(900) + _row(1)), DOMAINS)
    assert [turn.id for turn in found.train["alpha"]] == ["c-1"]


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"a\tb\n1\t2\n")])
def test_what_is_not_multidogo_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = _folder(tmp_path, _row(1))
    (folder / "alpha.train.tsv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"alpha\.train"):
        read_workload(folder, DOMAINS)


def test_too_few_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least three"):
        read_workload(tmp_path, DOMAINS)


def test_the_generated_workload_repeats_and_its_slots_stand_in_the_text() -> None:
    one, two = generate_workload(1, 300, 100), generate_workload(1, 300, 100)
    assert one.train == two.train
    assert one.generated
    assert set(one.train) == {"inventory", "loyalty", "storepolicy"}
    for turns in (*one.train.values(), *one.heldout.values()):
        for turn in turns:
            assert all(v in turn.text for values in turn.answer.slots.values() for v in values)


def _line(record: object, number: int = 7) -> dict[str, Any]:
    return {"file": "f.jsonl", "line": number, "raw": json.dumps(record).encode() + b"\n"}


def test_history_becomes_masked_rows() -> None:
    turn = {
        "id": "1",
        "domain": "a",
        "text": "call 8956235478",
        "intent": "info",
        "slots": {"phone": ["8956235478"]},
    }
    row = from_history(_line(turn), "a")
    assert json.loads(row["prompt"]) == [{"role": "user", "content": "call [PHONE_1]"}]
    answer = parse(row["completion"])
    assert answer is not None
    assert answer.slots == {"phone": ["[PHONE_1]"]}
    assert (row["source"], row["fault"]) == ("history", "")


def test_a_broken_history_line_is_a_fault_with_its_place() -> None:
    row = from_history(_line({"id": "1"}), "a")
    assert row["fault"].startswith("not a labelled turn")
    assert (row["file"], row["line"]) == ("f.jsonl", 7)


LABELS = {
    "tr-1": Label(
        trace_id="tr-1",
        adapter="a",
        answer='{"intent": "x", "slots": {}}',
        rationale="",
        annotator="ann",
        reason="sampled",
    )
}


def _trace(trace_id: str, prompt: list[dict[str, str]]) -> dict[str, Any]:
    trace = document(request_trace(trace_id, prompt=prompt))
    return {**_line(None), "raw": msgspec.json.encode(trace) + b"\n"}


def test_only_labelled_traces_train() -> None:
    prompt = [{"role": "user", "content": "hi"}]
    rows = from_trace(_trace("tr-1", prompt), "a", LABELS)
    assert [(r["row_id"], r["trace_id"], r["annotator"]) for r in rows] == [
        ("trace:tr-1", "tr-1", "ann")
    ]
    assert from_trace(_trace("tr-2", prompt), "a", LABELS) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (_line("text"), "not a trace"),
        (_line({"trace_id": "tr-1"}), "not a trace"),
        (_trace("tr-1", []), "not a structured answer"),
        (_trace("tr-1", [{"role": "user", "content": "a@b.example.com"}]), "personal data"),
    ],
)
def test_unusable_traces_are_faults(line: dict[str, Any], reason: str) -> None:
    (row,) = from_trace(line, "a", LABELS)
    assert reason in row["fault"]
