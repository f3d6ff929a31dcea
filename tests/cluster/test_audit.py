import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.audit import (
    CONTROL,
    ChainWriter,
    Head,
    Place,
    read_documents,
    read_pieces,
    verify,
)


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
    assert [trace["trace_id"] for trace in read_documents(tmp_path)][:2] == ["a-0", "a-1"]


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
    assert [trace["trace_id"] for trace in read_documents(small_disk)] == ["a-0", "a-1"]


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
    assert [trace["trace_id"] for trace in read_documents(tmp_path)] == ["a-0", "a-1"]


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


@pytest.fixture
def logged(tmp_path: Path) -> tuple[Path, dict[str, Head], dict[str, Head]]:
    """A log of two gateways and a control plane, and what the registry knows of them."""
    heads: list[dict[str, Head]] = []
    for folder, names in ((tmp_path, ("a", "b")), (tmp_path / CONTROL, ("c",))):
        heads.append({})
        for name in names:
            log = ChainWriter(folder, name)
            log.append([{"trace_id": f"{name}-{n}"} for n in range(3)])
            heads[-1][name] = log.head
            log.close()
    return tmp_path, heads[0], heads[1]


def _both(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"chain-{name}.jsonl", folder / f"traces-{name}.jsonl"


def _cut(folder: Path) -> None:
    for path in _both(folder, "a"):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))


def _delete(folder: Path) -> None:
    for path in _both(folder, "b"):
        path.unlink()


def _empty(folder: Path) -> None:
    for path in _both(folder, "a"):
        path.write_bytes(b"")


def _forge(folder: Path) -> None:
    ChainWriter(folder, "forged").append([{"trace_id": "f-1"}])


def _forge_a_change(folder: Path) -> None:
    ChainWriter(folder / CONTROL, "forged").append([{"trace_id": "ev-9"}])


def _duplicate(folder: Path) -> None:
    for old, new in zip(_both(folder, "a"), _both(folder, "copy"), strict=True):
        shutil.copy(old, new)


def _swap(folder: Path) -> None:
    for one, other in zip(_both(folder, "a"), _both(folder, "b"), strict=True):
        held = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(held)


def _rewrite(folder: Path) -> None:
    """A chain that is whole, of other records by the same writer's name."""
    for path in _both(folder, "a"):
        path.unlink()
    ChainWriter(folder, "a").append([{"trace_id": f"other-{n}"} for n in range(3)])


def _control_gone(folder: Path) -> None:
    shutil.rmtree(folder / CONTROL)


@pytest.mark.parametrize(
    ("attack", "fault"),
    [
        (_cut, "a.jsonl: 2 of 3 entries on record"),
        (_delete, "b.jsonl: 3 entries on record, none found"),
        (_empty, "a.jsonl: 0 of 3 entries on record"),
        (_forge, "forged.jsonl: no writer of that name is on record"),
        (_forge_a_change, "forged.jsonl: no writer of that name is on record"),
        (_duplicate, "copy.jsonl line 1: of another writer"),
        (_swap, "a.jsonl line 1: of another writer"),
        (_rewrite, "a.jsonl line 3: not the entry on record"),
        (_control_gone, "c.jsonl: 3 entries on record, none found"),
    ],
)
def test_the_registry_knows_what_is_missing_and_what_is_strange(
    logged: tuple[Path, dict[str, Head], dict[str, Head]],
    attack: Callable[[Path], None],
    fault: str,
) -> None:
    assert verify(*logged).faults == []
    attack(logged[0])
    assert fault in verify(*logged).faults


def test_a_log_may_be_ahead_of_the_registry(
    logged: tuple[Path, dict[str, Head], dict[str, Head]],
) -> None:
    folder, requests, changes = logged
    early = {name: Head(1, "") for name in requests}
    assert verify(folder, early, changes).verified
    assert verify(folder, {**requests, "idle": Head(0, "")}, changes).verified


def test_where_there_is_no_log_nothing_is_verified(tmp_path: Path) -> None:
    found = verify(tmp_path)
    assert not found.verified
    assert "no log to verify" in found.faults[0]
