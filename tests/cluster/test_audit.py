import errno
import json
from pathlib import Path

import pytest

from cluster.audit import ChainWriter, Place, read_pieces, read_traces, verify


def _write(folder: Path, writer: str, count: int) -> None:
    log = ChainWriter(folder, writer)
    log.append([{"trace_id": f"{writer}-{n}", "text": "grüße\u2028"} for n in range(count)])
    log.append([{"trace_id": f"{writer}-last"}])
    log.close()


def test_whole_chains_verify(tmp_path: Path) -> None:
    _write(tmp_path, "a", 3)
    _write(tmp_path, "b", 2)
    found = verify(tmp_path)
    assert (found.records, found.verified, found.faults) == (7, True, [])
    assert [trace["trace_id"] for trace in read_traces(tmp_path)][:2] == ["a-0", "a-1"]


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_altered_trace_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "a", 3)
    _edit(tmp_path / "traces-a.jsonl", "a-1", "a-9")
    assert verify(tmp_path).faults == ["a.jsonl line 2: the trace was altered"]


def test_an_altered_entry_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "a", 3)
    _edit(tmp_path / "chain-a.jsonl", "a-1", "a-9")
    assert "a.jsonl line 2: the entry was altered" in verify(tmp_path).faults


def test_a_removed_record_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "a", 3)
    for name in ("chain-a.jsonl", "traces-a.jsonl"):
        lines = (tmp_path / name).read_text(encoding="utf-8").split("\n")
        (tmp_path / name).write_text("\n".join([lines[0], *lines[2:]]), encoding="utf-8")
    assert "a.jsonl line 2: the chain is broken" in verify(tmp_path).faults


def test_what_could_not_be_written_is_not_in_the_log(small_disk: Path) -> None:
    log = ChainWriter(small_disk, "a")
    log.append([{"trace_id": "a-0"}])
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (200 << 10))
    for _ in range(50):
        with pytest.raises(OSError, match="No space left"):
            log.append([{"trace_id": f"lost-{n}", "text": "x" * 100} for n in range(300)])
    assert verify(small_disk).records == 1
    filler.unlink()
    log.append([{"trace_id": "a-1"}])
    log.close()
    found = verify(small_disk)
    assert (found.records, found.faults) == (2, [])
    assert [trace["trace_id"] for trace in read_traces(small_disk)] == ["a-0", "a-1"]


def test_a_log_that_could_not_be_mended_is_mended_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ChainWriter(tmp_path, "a")
    log.append([{"trace_id": "a-0"}])
    with monkeypatch.context() as broken:

        def sync(_handle: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr("os.fsync", sync)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                log.append([{"trace_id": "lost"}])
    log.append([{"trace_id": "a-1"}])
    log.close()
    assert verify(tmp_path).faults == []
    assert [trace["trace_id"] for trace in read_traces(tmp_path)] == ["a-0", "a-1"]


def test_what_was_read_and_taken_back_is_read_from_the_start(tmp_path: Path) -> None:
    _write(tmp_path, "a", 3)
    path = tmp_path / "traces-a.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"trace_id": "lost"}\n')
    [piece] = read_pieces(tmp_path, "a")
    assert len(piece.lines) == 5
    path.write_bytes(whole)
    assert list(read_pieces(tmp_path, "a", piece.after)) == []
    path.write_bytes(whole + b'{"trace_id": "another", "text": "longer"}\n')
    [again] = read_pieces(tmp_path, "a", piece.after)
    assert (again.first, len(again.lines)) == (Place(), 5)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "a", 1)
    (tmp_path / "traces-a.jsonl").unlink()
    assert not verify(tmp_path).verified


def test_a_rewritten_entry_hash_breaks_the_next_link(tmp_path: Path) -> None:
    _write(tmp_path, "a", 2)
    path = tmp_path / "chain-a.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    first["hash"] = "f" * 64
    path.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n", encoding="utf-8")
    assert len(verify(tmp_path).faults) >= 2


def test_where_there_is_no_log_nothing_is_verified(tmp_path: Path) -> None:
    found = verify(tmp_path)
    assert not found.verified
    assert "no log to verify" in found.faults[0]
