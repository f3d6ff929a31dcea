"""The systems that are compared: each is started, addressed and stopped here.

Ours run as applications of one Ray cluster; the other proxies as processes with their own virtual
environments. What is started is stopped by its id.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster.config import BaseModelRef, load
from cluster.control import jobs
from cluster.errors import ConflictError, HeadraceError
from cluster.launch import local as runtime
from cluster.processes import alive, command, descendants, tell
from serve_app.bench.load import Result
from serve_app.bench.streams import Stream
from serve_app.config import EngineConfig, ServeConfig, StageConfig, StageTable

LITELLM = "1.106.2"
TENANT = "bench"
REPOSITORY = Path(__file__).resolve().parents[2]
_READY_S = 180.0
_ENGINE_CORE = 0


@dataclass(frozen=True)
class System:
    """One system under test and how to reach it."""

    name: str
    url: str
    key: str
    model: str
    roots: tuple[int, ...]
    """Its processes, without those below them."""
    upstream: str = ""
    """Text in the command lines of processes that stand for the model, not for the system."""

    def processes(self) -> tuple[list[int], list[int]]:
        """Its own processes and those of its upstream."""
        found = descendants(self.roots)
        behind = [pid for pid in found if self.upstream and self.upstream in command(pid)]
        return [pid for pid in found if pid not in behind], behind

    def measure(
        self,
        *,
        concurrency: int,
        seconds: float,
        seed: int,
        core: int | None = None,
        repeated: bool = False,
        patient: bool = False,
    ) -> Result:
        """Load it from a process of its own, on `core` where one is given."""
        arguments = [
            *("--concurrency", str(concurrency), "--seconds", str(seconds), "--seed", str(seed)),
            *(("--repeated",) if repeated else ()),
            *(("--patient",) if patient else ()),
        ]
        return Result(**self._load("load", arguments, core, seconds))

    def stream(
        self, *, concurrency: int, seconds: float, seed: int, max_tokens: int
    ) -> tuple[float, list[Stream]]:
        """Open streams from a process of its own; the seconds it took, and the streams."""
        arguments = [
            *("--concurrency", str(concurrency), "--seconds", str(seconds), "--seed", str(seed)),
            *("--max-tokens", str(max_tokens)),
        ]
        found = self._load("streams", arguments, None, seconds)
        return float(found["seconds"]), [Stream(**one) for one in found["streams"]]

    def _load(
        self, module: str, arguments: list[str], core: int | None, seconds: float
    ) -> dict[str, Any]:
        pinned = ["taskset", "-c", str(core)] if core is not None else []
        target = ["--url", self.url, "--model", self.model]
        done = subprocess.run(  # noqa: S603 - our own command line, no shell
            [*pinned, sys.executable, "-m", f"serve_app.bench.{module}", *target, *arguments],
            input=self.key + "\n",
            capture_output=True,
            text=True,
            timeout=seconds + 240,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(arguments: list[str], log: Path) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        members = descendants([process.pid])
        for pid in members:
            tell(pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        for pid in members:
            if alive(pid):
                tell(pid, signal.SIGKILL)


def _await(system: System, pid: int, log: Path) -> None:
    """Until it answers a chat request."""
    body = {"model": system.model, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {system.key}"}
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and alive(pid):
        try:
            if httpx.post(system.url, json=body, headers=headers, timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.5)
    tail = log.read_text(errors="replace")[-1500:]
    raise HeadraceError(f"{system.name} did not come up:\n{tail}")


@contextmanager
def upstream(folder: Path) -> Iterator[System]:
    """The static OpenAI-compatible server."""
    port, log = free_port(), folder / "upstream.log"
    with _process([sys.executable, "-m", "serve_app.bench.upstream", str(port)], log) as pid:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        system = System("upstream", url, "none", "static", (pid,))
        _await(system, pid, log)
        yield system


def install_litellm(folder: Path) -> Path:
    """LiteLLM's proxy in a virtual environment of its own; returns its command."""
    venv = folder / f"litellm-{LITELLM}"
    executable = venv / "bin" / "litellm"
    if not (venv / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)  # noqa: S603
        subprocess.run(  # noqa: S603 - our own command line, no shell
            [str(venv / "bin/pip"), "install", "-q", "-q", f"litellm[proxy]=={LITELLM}"], check=True
        )
        (venv / "done").touch()
    return executable


@contextmanager
def litellm(folder: Path, behind: System, workers: int) -> Iterator[System]:
    """LiteLLM's proxy in front of the static server."""
    executable, port = install_litellm(folder), free_port()
    name = f"litellm-{workers}"
    config, log = folder / f"{name}.yaml", folder / f"{name}.log"
    target = {
        "model": "openai/static",
        "api_base": behind.url.removesuffix("/chat/completions"),
        "api_key": "none",
    }
    document = {
        "model_list": [{"model_name": "static", "litellm_params": target}],
        "general_settings": {"master_key": "sk-bench"},
    }
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    arguments = [
        # Its price list otherwise comes from the internet, at every start.
        *("env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR"),
        *(str(executable), "--config", str(config), "--host", "127.0.0.1"),
        *("--port", str(port), "--num_workers", str(workers), "--telemetry", "False"),
    ]
    with _process(arguments, log) as pid:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        system = System(name, url, "sk-bench", "static", (pid,))
        _await(system, pid, log)
        yield system


@contextmanager
def bare_engine(folder: Path) -> Iterator[System]:
    """vLLM's own OpenAI server on the base model, with the engine settings ours has.

    `vllm serve` looks for a distribution of that name, which the CPU build has not; this is the
    module behind it.
    """
    from cluster.processor import precision

    model, engine = REPOSITORY / "cluster/models/headrace-mini", EngineConfig()
    dtype = precision(BaseModelRef(path=str(model)).dtype, gpu=False)
    port, log = free_port(), folder / "vllm.log"
    arguments = [
        *("env", f"VLLM_CPU_KVCACHE_SPACE={engine.kv_cache_gib}"),
        # Left to itself it computes on every core and its HTTP server starves: 570 tokens a second
        # at 32 streams, against 1,900 with one core left free.
        *(f"VLLM_CPU_OMP_THREADS_BIND={_ENGINE_CORE}",),
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", model.name, "--dtype", dtype),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager"),
        *("--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(engine.max_num_seqs)),
        *("--enable-lora", "--max-loras", str(engine.max_loras)),
        *("--max-cpu-loras", str(engine.max_cpu_loras)),
        *("--max-lora-rank", str(engine.max_lora_rank)),
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ]
    with _process(arguments, log) as pid:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        system = System("vllm", url, "none", model.name, (pid,))
        _await(system, pid, log)
        yield system


#: One for each core, as the proxies have a worker for each.
_GATEWAYS = 2
PLACEMENTS: dict[str, dict[str, object]] = {
    "fused": {"placement": "fused"},
    "split": {"placement": "split"},
    # Each request a Serve call of its own at every stage, as many at a time as there are requests.
    "naive": {
        "calls": "handle",
        "stages": StageTable(
            **{
                name: StageConfig(
                    max_batch=1, max_in_flight=4096, on_failure=field.default.on_failure
                )
                for name, field in StageTable.model_fields.items()
            }
        ),
    },
}


@contextmanager
def ours(
    folder: Path,
    config_path: Path,
    name: str,
    engine: str = "static",
    settings: tuple[str, ...] = (),
) -> Iterator[System]:
    """Our graph in the placement `name`, the only application of a Ray cluster of its own.

    `engine` is `static`, or `vllm` for the real one: what is asked then is the base model, whose
    prompts carry no passages, as they carry none in the engine's own server. `settings` are
    `KEY=VALUE` overrides of the configuration.
    """
    cluster_folder = folder / "cluster"
    if runtime.running(cluster_folder) is not None:
        raise ConflictError(f"a benchmark's cluster from {cluster_folder} is still up")
    kept = cluster_folder / "auth_token"
    token = kept.read_text(encoding="ascii") if kept.exists() else None
    shutil.rmtree(cluster_folder, ignore_errors=True)
    cluster = runtime.start(cluster_folder, num_cpus=32, token=token)
    try:
        runtime.attach(cluster)
        from ray import serve

        workload = _workload(folder, cluster.dashboard)
        runtime.start_control(
            f"sqlite:///{cluster_folder / 'registry.db'}",
            max_rank=32,
            audit=cluster_folder / "state" / "audit",
        )
        from cluster.control.client import ControlClient
        from cluster.records.keys import KeyRequest

        control = ControlClient()
        wanted = KeyRequest(tenant=TENANT)
        key = control.do(control.keys.issue(wanted, control.name, by_operator=True)).secret
        serve.start(http_options={"host": "127.0.0.1", "port": cluster.proxy_port})
        port = free_port()
        paths = [
            f"base_model.path={REPOSITORY / 'cluster/models/headrace-mini'}",
            f"state={cluster_folder / 'state'}",
            f"gateway.port={port}",
            f"routing.artefact={workload / 'router'}",
            f"context.index={workload / 'index'}",
        ]
        gateways = [
            f"gateway.autoscaling.{bound}={_GATEWAYS}" for bound in ("min_replicas", "max_replicas")
        ]
        config = load(ServeConfig, config_path, [*paths, *gateways, *settings])
        config = config.model_copy(update=PLACEMENTS[name])
        if engine == "vllm":
            context = config.context.model_copy(update={"budget_words": {}})
            config = config.model_copy(update={"context": context})
        yield _deploy(name, config, key, cluster.pid, engine)
    finally:
        import ray

        ray.shutdown()  # first: Ray ends a process whose cluster is gone, with what it was raising
        runtime.stop(cluster_folder)


def _workload(folder: Path, dashboard: str) -> Path:
    """Router and documents for every placement; made once in a benchmark's folder."""
    out = folder / "workload"
    if not (out / f"of-{TENANT}").exists():
        shutil.rmtree(out, ignore_errors=True)
        config = str(REPOSITORY / "configs/data/import.yaml")
        arguments = ["import", "--config", config, "--set", f"out={out}"]
        arguments += ["--set", f"tenant={TENANT}"]
        jobs.submit(dashboard, "bench-import", "data_jobs.main", arguments).wait(300)
        (out / f"of-{TENANT}").touch()
    return out


def _deploy(name: str, config: ServeConfig, key: str, head: int, engine: str) -> System:
    from ray import serve

    from cluster.control.protocol import SERVE_APP
    from serve_app.bench.static import StaticEngineReplica
    from serve_app.engine.replica import EngineReplica
    from serve_app.graph import base_name, build_graph

    replica = {"static": StaticEngineReplica, "vllm": EngineReplica}[engine]
    serve.run(build_graph(config, replica), name=SERVE_APP, route_prefix="/")
    url = f"http://127.0.0.1:{config.gateway.port}/v1/chat/completions"
    model = "auto" if engine == "static" else base_name(config)
    system = System(f"headrace-{name}", url, key, model, (head,), upstream=":engine")
    _await(system, head, config.audit_dir / "none.log")
    return system
