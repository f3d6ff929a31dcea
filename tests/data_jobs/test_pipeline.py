"""The dataset pipeline on a real, local Ray Data: sources, steps, faults and the manifest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from pydantic import ValidationError

from cluster.config import ConfigModel
from cluster.dataset import ROWS, read_manifest
from cluster.errors import DataError
from cluster.records.dataset import COLUMNS
from cluster.records.labels import Label
from cluster.records.trace import document
from data_jobs.config import DatasetConfig
from data_jobs.pipeline import build_dataset
from tests.fakes.traces import request_trace


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _config(
    folder: Path, version: int, sources: list[dict[str, str]], **more: Any
) -> DatasetConfig:
    settings = {"adapter": "inventory", "tenant": "acme", "version": version, "sources": sources}
    return DatasetConfig.model_validate({**settings, "out": str(folder / "datasets"), **more})


def _history(folder: Path) -> dict[str, str]:
    turns = [
        {"id": str(n), "domain": "inventory", "text": f"is item {n} here", "intent": f"i{n % 3}"}
        for n in range(9)
    ]
    lines = [json.dumps({**turn, "slots": {}}) for turn in turns]
    path = folder / "history.jsonl"
    path.write_text("\n".join([*lines, "not json", ""]))
    return {"type": "history", "path": str(path)}


def _rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path / ROWS).to_pylist()
    return sorted(found, key=lambda row: row["row_id"])


def test_a_version_is_built_from_its_sources_and_names_what_it_left_out(tmp_path: Path) -> None:
    history = _history(tmp_path)
    first = build_dataset(_config(tmp_path, 1, [history]), [])
    manifest = read_manifest(first)
    assert (manifest.rows, manifest.from_traces, manifest.parent) == (9, 0, None)
    assert sum(manifest.dropped.values()) == 1
    assert [(fault.file, fault.line) for fault in manifest.broken] == [("history.jsonl", 10)]
    assert manifest.sources.keys() == {"history.jsonl"}
    assert set(_rows(first)[0]) == set(COLUMNS)

    audit = tmp_path / "audit"
    audit.mkdir()
    traces = [request_trace(f"tr-{n}", prompt=[{"role": "user", "content": "hi"}]) for n in (1, 2)]
    lines = b"".join(msgspec.json.encode(document(trace)) + b"\n" for trace in traces)
    (audit / "traces-w.jsonl").write_bytes(lines)
    label = Label(
        trace_id="tr-2",
        adapter="inventory",
        answer='{"intent": "i1", "slots": {}}',
        rationale="",
        annotator="ann",
        reason="sampled",
    )
    sources = [{"type": "parent", "path": str(first)}, {"type": "traces", "path": str(audit)}]
    second = build_dataset(_config(tmp_path, 2, sources), [label])
    manifest = read_manifest(second)
    assert (manifest.rows, manifest.from_traces, manifest.parent) == (10, 1, 1)
    [traced] = [row for row in _rows(second) if row["source"] == "trace"]
    assert (traced["trace_id"], traced["annotator"]) == ("tr-2", "ann")


def test_shuffled_labels_are_the_same_labels_on_other_prompts(tmp_path: Path) -> None:
    history = _history(tmp_path)
    plain = _rows(build_dataset(_config(tmp_path, 1, [history]), []))
    step = {"type": "shuffle_labels", "seed": 13}
    shuffled = _rows(build_dataset(_config(tmp_path, 2, [history], steps=[step]), []))
    again = _rows(build_dataset(_config(tmp_path, 3, [history], steps=[step]), []))
    assert [row["prompt"] for row in shuffled] == [row["prompt"] for row in plain]
    completions = [row["completion"] for row in plain]
    assert sorted(row["completion"] for row in shuffled) == sorted(completions)
    assert [row["completion"] for row in shuffled] != completions
    assert sorted(r["completion"] for r in again) == sorted(completions)


class Marking(ConfigModel):
    """A step that gives every other row a fault, and one that filters instead."""

    type: str = "marking"
    drop: bool = False

    def apply(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        if self.drop:
            return rows.filter(expr="line != 2")
        return rows.map(lambda row: {**row, "fault": "" if row["line"] % 2 else "even"})


def test_what_a_step_marks_is_left_out_and_counted(tmp_path: Path) -> None:
    config = _config(tmp_path, 1, [_history(tmp_path)])
    marked = build_dataset(config.model_copy(update={"steps": (Marking(),)}), [])
    manifest = read_manifest(marked)
    assert (manifest.rows, len(_rows(marked))) == (5, 5)
    assert manifest.dropped["even"] == 4
    assert ("history.jsonl", 2) in [(fault.file, fault.line) for fault in manifest.broken]
    with pytest.raises(DataError, match="step marking lost rows"):
        build_dataset(config.model_copy(update={"steps": (Marking(drop=True),)}), [])


def test_sources_that_the_manifest_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sources.append(_history(tmp_path / name))
    with pytest.raises(DataError, match=r"two sources have history\.jsonl"):
        build_dataset(_config(tmp_path, 1, sources), [])
    parents = [{"type": "parent", "path": path} for path in ("a", "b")]
    with pytest.raises(ValidationError, match="one parent"):
        _config(tmp_path, 1, parents)


def test_nothing_to_build_from_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    config = _config(tmp_path, 1, [{"type": "traces", "path": str(tmp_path / "audit")}])
    with pytest.raises(DataError, match="nothing to build"):
        build_dataset(config, [])
