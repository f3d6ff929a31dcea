"""What Headrace asks of Ray beyond its stable interface: each flag and attribute with its reason.

The only module to change when Ray changes under us. Flags are read by Ray when it is imported, in
every process of the cluster; `cluster.runtime` sets them.
"""

from __future__ import annotations

import functools
from typing import Any

#: Documented throughput switches of Ray Serve.
SERVE_FLAGS = {
    # User code on the replica's own loop, the router on the caller's, buffered access logs: each
    # hop is spared two thread switches and a write.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Replica to replica by gRPC instead of the object store: our messages are a few kilobytes.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # HAProxy's statistics page listens on every interface, which a laptop must not.
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
}

#: Quieter, and fewer processes, on a small machine.
CORE_FLAGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Starting a worker process costs seconds of a small machine: start none ahead of need, and
    # keep the idle ones of a job for its next task.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "20000",
    # Ray makes its workers yield to every other process; these serve.
    "RAY_worker_niceness": "0",
    # Ray's new behaviour for GPU visibility, opted into so that each process does not warn.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def direct_ingress(ports: tuple[int, int]) -> dict[str, str]:
    """Flags that let gateway replicas listen on `ports` (first, last) themselves.

    Without it each request goes through Serve's Python proxy, which costs a small machine more than
    the gateway does. One gateway replica a node takes the first port.
    """
    return {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[0]),
        # Ray leaves the last port of its range out.
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports[1] + 1),
        # How long a replica that is to stop waits for a balancer to notice; there is none.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def share_ingress_port() -> None:
    """Let the gateway of this process listen on a port that has just been left.

    Ray binds a replica's port without `SO_REUSEADDR`, so that for a minute after a stop the same
    port would be "in use". To be called in the gateway's process, before it listens.
    """
    from ray.serve._private import http_util, replica

    replica.start_asgi_http_server = functools.partial(
        _start_shared, start=http_util.start_asgi_http_server
    )


async def _start_shared(*args: Any, start: Any, **settings: Any) -> Any:
    return await start(*args, **{**settings, "enable_so_reuseport": True})


def ingress_ports(application: str) -> list[int]:
    """The HTTP ports of an application's gateway replicas.

    Serve tells them to load balancers through its controller, and to nobody else.
    """
    import ray
    from ray.serve.context import _get_global_client

    controller: Any = _get_global_client()._controller
    groups = ray.get(controller.get_target_groups.remote(application), timeout=30)
    return [
        int(target.port)
        for group in groups
        if str(group.protocol).upper().endswith("HTTP")
        for target in group.targets
    ]
