"""Processes of this machine by id: who descends from whom, who lives, where they may run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path


def descendants(roots: Iterable[int]) -> list[int]:
    """`roots` and every process below them; Ray's workers leave the process group."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = dict.fromkeys(roots)
    pending = list(found)
    while pending:
        below = [pid for pid in parents.get(pending.pop(), []) if pid not in found]
        found.update(dict.fromkeys(below))
        pending.extend(below)
    return list(found)


def alive(pid: int) -> bool:
    """Whether `pid` runs; one that has ended and waits to be collected does not.

    A process whose first thread has ended keeps its sockets until its last one has.
    """
    fields = _stat(pid)
    if not fields or fields[0] != "Z":
        return bool(fields)
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent, and the fields after them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def command(pid: int) -> str:
    """The command line of a process; empty where it has ended."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode("utf-8", "replace")


def resident_bytes(pid: int) -> int:
    """Memory of `pid` that is its own and in RAM; 0 where it has ended.

    Pages it shares with others, such as mapped libraries and the object store, do not count.
    """
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def tell(pid: int, number: signal.Signals) -> None:
    """Signal `pid`, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Let every thread of `pids` run on `cores` only."""
    for pid in pids:
        try:
            threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
        except OSError:
            continue
        for thread in threads:
            try:
                os.sched_setaffinity(thread, cores)
            except OSError:
                continue  # it ended while we looked


def share_interpreter() -> None:
    """Have threads of this process wait at most half a millisecond for the interpreter.

    Python's default is five, which an event loop then waits each time a thread for statistics or
    garbage is at work, and a thread that embeds waits for each small step of its own.
    """
    sys.setswitchinterval(0.0005)
