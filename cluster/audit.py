"""The audit log: a hash-chained, append-only record of every decision, and its verifier.

Content and chain are kept apart, so that content can be erased while the chain still proves what
was there: `traces-*.jsonl` holds one trace a line, `chain-*.jsonl` one entry a line with the
digest of its trace and the hash of the entry before. Each writer owns one pair of files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from cluster.records.trace import Trace, decode

GENESIS = "0" * 64
#: Where, below the audit folder, the control plane chains what it changed.
CONTROL = "control"
#: Bytes that are read at a time, and the rest of a trace.
_PIECE = 8 << 20

_ENCODER = msgspec.json.Encoder(order="sorted")


def _canonical(value: dict[str, Any]) -> bytes:
    """Sorted keys, no spaces; a lone surrogate, which UTF-8 cannot encode, is escaped."""
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(value)
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _write(handle: FileIO, data: bytes) -> None:
    """All of it, durably; a disk that fills up takes a part first."""
    left = memoryview(data)
    while left:
        left = left[handle.write(left) :]
    os.fsync(handle.fileno())


@dataclass(frozen=True)
class Head:
    """The latest entry of a writer's chain."""

    entries: int
    hash: str
    """Of the last of them; empty where only their number is known."""


class ChainWriter:
    """Appends traces and their chain entries; one fsync a batch, not one a record."""

    def __init__(self, directory: Path, writer: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what could not be written must not be written later.
        self._traces = (directory / f"traces-{writer}.jsonl").open("xb", buffering=0)
        self._chain = (directory / f"chain-{writer}.jsonl").open("xb", buffering=0)
        self.writer = writer
        self._head = Head(0, GENESIS)
        self._sizes, self._torn = (0, 0), False

    @property
    def sequence(self) -> int:
        """The place of the next entry."""
        return self._head.entries

    @property
    def head(self) -> Head:
        """The latest entry that is durable."""
        return self._head

    def append(self, traces: Sequence[dict[str, Any]]) -> list[str]:
        """Write `traces` durably and return the chain hash of each, in order.

        Raises:
            OSError: they could not be written, and none of them is in the log.
        """
        hashes, lines, entries = list[str](), list[bytes](), list[bytes]()
        previous = self._head.hash
        for sequence, trace in enumerate(traces, self._head.entries):
            line = _canonical({**trace, "writer": self.writer})
            body = {
                "content": _sha256(line),
                "previous": previous,
                "sequence": sequence,
                "trace_id": trace["trace_id"],
                "writer": self.writer,
            }
            previous = _sha256(_canonical(body))
            lines.append(line + b"\n")
            entries.append(_canonical({**body, "hash": previous}) + b"\n")
            hashes.append(previous)
        self._commit(b"".join(lines), b"".join(entries))
        self._head = Head(self._head.entries + len(hashes), previous)
        return hashes

    def _commit(self, lines: bytes, entries: bytes) -> None:
        """Write both or neither; a failed write is rolled back, at the latest before the next."""
        if self._torn:
            self._take_back()
        self._torn = True
        try:
            # Content first: an entry in the chain never points at a trace that is not on disk.
            _write(self._traces, lines)
            _write(self._chain, entries)
        except BaseException:
            with suppress(OSError):
                self._take_back()
            raise
        self._torn = False
        self._sizes = self._sizes[0] + len(lines), self._sizes[1] + len(entries)

    def _take_back(self) -> None:
        for handle, size in zip((self._traces, self._chain), self._sizes, strict=True):
            handle.seek(size)
            handle.truncate()
            os.fsync(handle.fileno())
        self._torn = False

    def close(self) -> None:
        """Release the files."""
        self._traces.close()
        self._chain.close()


@dataclass
class Verification:
    """What the verifier found."""

    records: int = 0
    """Requests on record."""
    changes: int = 0
    """Changes by the control plane, on record."""
    faults: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether every chain is whole and every trace is what was recorded."""
        return not self.faults


def verify(
    directory: Path,
    requests: Mapping[str, Head] | None = None,
    changes: Mapping[str, Head] | None = None,
) -> Verification:
    """Recompute every chain under `directory` against its content, offline.

    Chains of the control plane's changes are below it in `control`. `requests` and `changes` are
    the writers of each that the registry knows, with their last known head: without them a missing
    or added tail, file or writer is not found.
    """
    result = Verification()
    result.records = _verify_folder(directory, requests, result.faults)
    result.changes = _verify_folder(directory / CONTROL, changes, result.faults)
    if not writers(directory) and not writers(directory / CONTROL):
        # A deleted log must not look like a whole one.
        result.faults.append(f"{directory}: there is no log to verify")
    return result


def _verify_folder(directory: Path, heads: Mapping[str, Head] | None, faults: list[str]) -> int:
    """Add what is wrong to `faults`; returns how many entries there are."""
    chains = {path.name.removeprefix("chain-") for path in directory.glob("chain-*.jsonl")}
    contents = {path.name.removeprefix("traces-") for path in directory.glob("traces-*.jsonl")}
    faults += [f"{name}: a chain or its traces are missing" for name in sorted(chains ^ contents)]
    if heads is not None:
        there = {name.removesuffix(".jsonl") for name in chains | contents}
        wrote = {writer for writer, head in heads.items() if head.entries}
        missing, strange = sorted(wrote - there), sorted(there - heads.keys())
        faults += [
            f"{name}.jsonl: {_entries(heads[name])} on record, none found" for name in missing
        ]
        faults += [f"{name}.jsonl: no writer of that name is on record" for name in strange]
    return sum(_verify_pair(directory, name, heads, faults) for name in sorted(chains & contents))


def _entries(head: Head) -> str:
    return "1 entry" if head.entries == 1 else f"{head.entries} entries"


def _verify_pair(
    directory: Path, name: str, heads: Mapping[str, Head] | None, faults: list[str]
) -> int:
    writer = name.removesuffix(".jsonl")
    known = (heads or {}).get(writer, Head(0, ""))
    entries = _read_lines(directory / f"chain-{name}")
    lines = _read_lines(directory / f"traces-{name}")
    if len(entries) != len(lines):
        faults.append(f"{name}: {len(entries)} chain entries for {len(lines)} traces")
    if len(entries) < known.entries:
        faults.append(f"{name}: {len(entries)} of {_entries(known)} on record")
    signed = f'"writer":{json.dumps(writer)}'.encode()
    previous = GENESIS
    for position, (entry_line, line) in enumerate(zip(entries, lines, strict=False)):
        try:
            entry = json.loads(entry_line)
            claimed = entry.pop("hash")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            faults.append(f"{name} line {position + 1}: not a chain entry")
            return position + 1
        if entry.get("previous") != previous or entry.get("sequence") != position:
            faults.append(f"{name} line {position + 1}: the chain is broken")
        if entry.get("writer") != writer or signed not in line:
            faults.append(f"{name} line {position + 1}: of another writer")
        if _sha256(_canonical(entry)) != claimed:
            faults.append(f"{name} line {position + 1}: the entry was altered")
        if entry.get("content") != _sha256(line):
            faults.append(f"{name} line {position + 1}: the trace was altered")
        if position + 1 == known.entries and known.hash not in ("", claimed):
            faults.append(f"{name} line {position + 1}: not the entry on record")
        previous = claimed
    return len(entries)


def _read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().removesuffix(b"\n").split(b"\n") if path.stat().st_size else []


def read_documents(directory: Path) -> Iterator[dict[str, Any]]:
    """The content of every entry under `directory`, writer by writer, in the order written."""
    for line in _content(directory):
        yield json.loads(line)


def read_traces(directory: Path) -> Iterator[Trace]:
    """Every trace under `directory`, of whatever version, writer by writer, in the order written.

    Raises:
        DataError: a line is no trace.
    """
    return map(decode, _content(directory))


def _content(directory: Path) -> Iterator[bytes]:
    for path in sorted(directory.glob("traces-*.jsonl")):
        yield from _read_lines(path)


@dataclass(frozen=True)
class Place:
    """How far a writer's traces were read."""

    traces: int = 0
    offset: int = 0
    """In bytes."""


_START = Place()


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of one writer's traces."""

    writer: str
    first: Place
    lines: list[bytes]

    @property
    def after(self) -> Place:
        """The place after them."""
        length = sum(map(len, self.lines)) + len(self.lines)
        return Place(self.first.traces + len(self.lines), self.first.offset + length)


def read_pieces(directory: Path, writer: str, begin: Place = _START) -> Iterator[Piece]:
    """What `writer` has written by now from `begin` on, `_PIECE` bytes or so at a time."""
    path = directory / f"traces-{writer}.jsonl"
    end = path.stat().st_size
    while begin.offset < end:
        with path.open("rb") as file:
            file.seek(max(0, begin.offset - 1))
            if begin.offset and file.read(1) != b"\n":
                begin = _START  # what was read then has been rolled back: read from the start
                file.seek(0)
            found = file.read(min(_PIECE, end - begin.offset))
            if not found.endswith(b"\n"):
                found += file.readline()
        whole = found[: found.rfind(b"\n") + 1]  # the last may be being written
        if not whole:
            return
        piece = Piece(writer, begin, whole[:-1].split(b"\n"))
        yield piece
        begin = piece.after


def writers(directory: Path) -> list[str]:
    """Names of the writers whose chains are in `directory`."""
    return sorted(path.stem.removeprefix("traces-") for path in directory.glob("traces-*.jsonl"))
