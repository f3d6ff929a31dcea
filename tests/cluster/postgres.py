"""A PostgreSQL server of its own for the tests: Debian's package, a socket, no port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_S = 60.0


def binaries() -> Path | None:
    """Where PostgreSQL's server is installed, the newest of several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def server(programs: Path) -> Iterator[str]:
    """The URL of a server that lives as long as the context."""
    # PostgreSQL refuses to run as root, and a socket's path may have 107 characters only.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="hr-pg-"))
    shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    made = run(str(programs / "initdb"), "-D", str(data), "-U", "headrace", "-A", "trust", "-N")
    assert made.wait(120) == 0, "initdb failed"
    process = run(
        str(programs / "postgres"),
        "-D",
        str(data),
        "-k",
        str(folder),
        "-c",
        "listen_addresses=",
        "-c",
        "fsync=off",
    )
    try:
        deadline = time.monotonic() + _START_S
        while not (folder / ".s.PGSQL.5432").exists():
            assert process.poll() is None, "PostgreSQL ended as it started"
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.1)
        yield f"postgresql://headrace@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # ends its sessions; SIGTERM waits for them
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
