"""The Ray runtime on one machine: start a head, attach to it, start the control plane, stop it.

The only module that reads or sets environment variables. What it starts it stops by process
group, never by name, so that another Ray on the machine is left alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import ray_private
from cluster.errors import ConfigError, ConflictError, HeadraceError
from cluster.processes import alive, command, descendants, tell
from cluster.storage import write_atomic

_STATE = "runtime.json"
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 5.0
_KILL_TIMEOUT_S = 15.0

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "WANDB_SILENT": "true",
    "DS_LOG_LEVEL": "warning",
}


@dataclass(frozen=True)
class LocalCluster:
    """A Ray head started here."""

    address: str
    dashboard: str
    pid: int
    token_path: str
    proxy_port: int
    """Where Serve's own proxy listens; gateways are reached directly."""


def environment(token_path: Path) -> dict[str, str]:
    """The environment of every process of the cluster: token authentication on, a temporary folder
    that is its owner's alone."""
    temporary = str(_private_folder(token_path.parent))
    return {
        **os.environ,
        **_QUIET,
        **ray_private.CORE_FLAGS,
        **ray_private.SERVE_FLAGS,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_TMPDIR": temporary,
        "TMPDIR": temporary,
    }


def _private_folder(workdir: Path) -> Path:
    """The temporary folder of the cluster of `workdir`: sockets, logs and objects of Ray, which
    makes its own for everyone to enter.

    Not in `workdir`: the path of a Unix socket has 107 bytes.

    Raises:
        HeadraceError: it belongs to another user, or is open to others.
    """
    name = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir())
    if len(str(folder)) > _SHORT or folder.name.startswith(_TEMPORARY):
        folder = Path("/tmp")  # noqa: S108 - made private below
    folder /= f"{_TEMPORARY}{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HeadraceError(f"{folder} is not this user's alone: remove it")
    return folder


_TEMPORARY = "headrace-"
_SHORT = 24
#: umask of every process of the cluster: only the owner reads traces, keys and the registry.
_PRIVATE = 0o077


def require_free_port(port: int) -> None:
    """Raise where something listens on `port` of the loopback interface.

    Raises:
        ConflictError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConflictError(
                f"port {port} is taken: stop what listens there, or choose another with --port"
            ) from error


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


def start(workdir: Path, *, num_cpus: int, token: str | None = None) -> LocalCluster:
    """Start a Ray head of `num_cpus` logical CPUs whose state is kept in `workdir`.

    A process reads its Ray token once: who attaches to one cluster after another gives them all the
    same `token`. Otherwise each has its own.

    Raises:
        ConflictError: one started from this `workdir` still runs.
        HeadraceError: Ray did not come up.
    """
    if running(workdir) is not None:
        raise ConflictError(f"a cluster from {workdir} is still up: stop it with ./scripts/down")
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    workdir.chmod(0o700)  # where it was there already
    token_path = workdir / "auth_token"
    token_path.touch(mode=0o600)
    token_path.write_text(token or secrets.token_hex(32), encoding="ascii")
    gcs, dashboard, agent, agent_grpc, metrics, client, proxy = _free_ports(7)
    log = (workdir / "ray.log").open("w", encoding="utf-8")
    process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
        [
            str(Path(sys.executable).parent / "ray"),
            *("start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--num-cpus={num_cpus}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}",
            f"--ray-client-server-port={client}",
            f"--object-store-memory={1 << 30}",
        ],
        env=environment(token_path),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=_PRIVATE,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread runs before Ray is started
    )
    log.close()
    cluster = LocalCluster(
        f"127.0.0.1:{gcs}",
        f"http://127.0.0.1:{dashboard}",
        process.pid,
        str(token_path),
        proxy,
    )
    write_atomic(workdir / _STATE, json.dumps(asdict(cluster)))
    _await_dashboard(process, dashboard, workdir)
    return cluster


def _die_with_parent() -> None:
    """Runs in the child: Linux kills the head when the process that started it dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _await_dashboard(process: subprocess.Popen[bytes], port: int, workdir: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    stop(workdir)
    raise HeadraceError(f"Ray did not start; its output is in {workdir / 'ray.log'}")


def running(workdir: Path) -> LocalCluster | None:
    """The cluster started from `workdir`, if its head still runs."""
    path = workdir / _STATE
    if not path.is_file():
        return None
    cluster = LocalCluster(**json.loads(path.read_text(encoding="utf-8")))
    return cluster if _is_ray(cluster.pid) else None


def died(workdir: Path) -> bool:
    """Whether the cluster started from `workdir` has ended without `headrace down`."""
    return (workdir / _STATE).is_file() and running(workdir) is None


def ray_logs(workdir: Path) -> Path:
    """Where Ray's own logs of the newest cluster of `workdir` are."""
    return _private_folder(workdir) / "ray" / "session_latest" / "logs"


def _is_ray(pid: int) -> bool:
    """Whether `pid` is a Ray head: a recycled process id must not be stopped."""
    line = command(pid)
    return "ray" in line and "--head" in line


def stop(workdir: Path) -> bool:
    """Stop the cluster started from `workdir` and wait for its processes; whether there was one.

    Nothing is lost by ending a process here: the registry and the audit log are durable before
    they answer.

    Raises:
        HeadraceError: a process did not end.
    """
    cluster = running(workdir)
    (workdir / _STATE).unlink(missing_ok=True)
    if cluster is None:
        return False
    # A worker may start others while it terminates, so each round lists its descendants again.
    members = [cluster.pid]
    for number, wait_s in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, _KILL_TIMEOUT_S)):
        members = descendants(members)
        for pid in members:
            tell(pid, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            _reap(cluster.pid)
            members = [pid for pid in descendants(members) if alive(pid)]
            if not members:
                return True
            time.sleep(0.05)
    raise HeadraceError(f"these processes of the cluster did not end: {members}")


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # started by another process


def attach(cluster: LocalCluster) -> None:
    """Connect this process to `cluster`."""
    os.environ.update(environment(Path(cluster.token_path)))
    import ray

    from cluster.control.protocol import NAMESPACE

    ray.init(
        address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR"
    )


def require_cluster(workdir: Path) -> LocalCluster:
    """The running cluster of `workdir`.

    Raises:
        ConfigError: there is none.
    """
    cluster = running(workdir)
    if cluster is None:
        raise ConfigError(
            f"no cluster runs from {workdir}: start one with ./scripts/demo --serve or headrace up"
        )
    return cluster


#: Calls of the control plane at a time: gateways wait in it for news.
_MAX_CALLS = 1000


def start_control(database: str, *, max_rank: int, audit: Path) -> None:
    """Start the control plane as a named, detached actor that Ray restarts if it dies.

    What it changes is chained in the audit log, whose folder is `audit`.
    """
    import ray

    from cluster.control.client import LEDGER_GROUP
    from cluster.control.fleet import ServeFleet
    from cluster.control.plane import ControlPlane
    from cluster.control.protocol import ACTOR_NAME, NAMESPACE

    # Calls of a concurrency group run on an event loop of their own.
    grouped = ray.remote(concurrency_groups={LEDGER_GROUP: _MAX_CALLS})(ControlPlane)
    actor = grouped.options(
        name=ACTOR_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=_MAX_CALLS,
        num_cpus=0.1,
    )
    handle = actor.remote(database, ServeFleet(), max_rank, audit)
    ray.get(handle.call.remote("serving", "table", (), {}), timeout=60)
