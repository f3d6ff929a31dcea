"""Files that other processes read: atomic publication, content digests, confined paths.

A directory is published by rename, its `STABLE` marker in it; nothing rewrites it afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ArtifactError, ConflictError, DataError, DiskFullError

STABLE = "STABLE"
_CHUNK = 1 << 20


def staging(final: Path) -> Path:
    """A fresh directory beside `final`, to be filled and then handed to `publish`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))


@contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """A fresh directory that is published as `final` at the end, or is gone if anything fails.

    Raises:
        ConflictError: `final` is already there; published directories are immutable.
        DiskFullError: there is no room for it.
    """
    with staged_for(final) as staged:
        yield staged
        publish(staged, final)


@contextmanager
def staged_for(final: Path) -> Iterator[Path]:
    """A fresh directory for the caller to publish as `final`, gone if anything fails.

    Raises:
        DiskFullError: there is no room for it.
    """
    staged = staging(final)
    try:
        yield staged
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if _disk_is_full(error):
            raise DiskFullError(
                f"no space left for {final}: nothing was published; make room, then run this again"
            ) from error
        raise


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and pyarrow have errors of their own, which name the system's.
    return isinstance(error, Exception) and f"os error {errno.ENOSPC}" in str(error)


def publish(source: Path, final: Path) -> str:
    """Mark `source` stable, move it to `final` in one step, and return its digest.

    Raises:
        ConflictError: `final` is already there; published directories are immutable.
    """
    if final.exists():
        raise ConflictError(f"{final} is already published; versions are immutable")
    digest = tree_digest(source)
    # Before the move: a disk that fills up now leaves nothing under the name.
    write_atomic(source / STABLE, digest + "\n")
    publish_sealed(source, final)
    return digest


def publish_sealed(source: Path, final: Path) -> None:
    """Move `source`, which vouches for its own content, to `final` in one step.

    Raises:
        ConflictError: `final` is already there.
    """
    if final.exists():
        raise ConflictError(f"{final} is already there: nothing is written over")
    for path in source.rglob("*"):
        if path.is_file():
            _sync(path)
    source.chmod(0o755)
    source.rename(final)
    _sync(final.parent)


def require_stable(path: Path) -> str:
    """The digest that `path` was published with, checked against its present content.

    Raises:
        ArtifactError: not published, or altered since.
    """
    marker = path / STABLE
    if not marker.is_file():
        raise ArtifactError(f"{path} is not a published directory: its {STABLE} marker is missing")
    expected = marker.read_text(encoding="ascii").strip()
    actual = tree_digest(path)
    if actual != expected:
        raise ArtifactError(f"{path} was altered after it was published: digest {actual[:12]}")
    return expected


def tree_digest(root: Path) -> str:
    """SHA-256 over the names and contents of all files below `root`, the marker excepted."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link: published directories hold none")
        if path.is_file() and path != root / STABLE:
            digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(name, path)


def read_json(path: Path, limit: int = 64 << 20) -> object:
    """The JSON value in `path`.

    Raises:
        DataError: missing, over `limit` bytes, or not JSON.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.stat().st_size > limit:
        raise DataError(f"{path} is over {limit} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def confined(root: Path, *parts: str) -> Path:
    """`root/parts...`, which must stay below `root`.

    Raises:
        ArtifactError: the parts climb out of `root`.
    """
    path = root.joinpath(*parts).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ArtifactError(f"path {'/'.join(parts)!r} leaves {root}")
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
