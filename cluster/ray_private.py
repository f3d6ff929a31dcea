"""What Headrace asks of Ray beyond its stable interface: each flag and attribute with its reason.

With `serve_app.graph`, which builds Serve's ASGI application itself, the place to look when Ray
changes. Flags are read by Ray when it is imported, in every process of the cluster;
`cluster.launch.local` sets them.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
from collections.abc import Callable
from typing import Any

from cluster.printing import PrintableRecords

#: Documented throughput switches of Ray Serve.
SERVE_FLAGS = {
    # User code on the replica's own loop, the router on the caller's, buffered access logs: each
    # call is spared two thread switches and a write.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Replica to replica by gRPC instead of the object store: our messages are a few kilobytes.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Gateway replicas listen themselves: through Serve's Python proxy each request costs a small
    # machine more than the gateway does.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # How long a replica that is to stop waits for a balancer to notice; there is none.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # HAProxy's statistics page listens on every interface, which a laptop must not.
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    # How often the controller looks at every deployment. Ten deployments ten times a second take a
    # fourteenth of a core; what it decides, it decides by seconds.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
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
    # A cluster of one machine needs no other's reach: its node is 127.0.0.1 and its servers listen
    # there alone, as Ray has it on laptops with macOS. By default they listen on every interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray makes its workers yield to every other process; these serve.
    "RAY_worker_niceness": "0",
    # Ray's new behaviour for GPU visibility, opted into so that each process does not warn.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def share_ingress_port(port: int, protocol: Callable[..., Any]) -> None:
    """Have the gateway of this process listen on `port`, beside the others of its node.

    `protocol` makes uvicorn's protocol of each connection. Serve would give each gateway replica a
    port of its own, which needs a balancer in front, and bind it without `SO_REUSEADDR`, so that
    for a minute after a stop it would be "in use". Here the kernel spreads connections over the
    replicas. To be called in the gateway's process, before it listens. The port Serve knows of is
    then unused.
    """
    from ray.serve._private import http_util, replica

    replica.start_asgi_http_server = functools.partial(
        _start_shared, start=http_util.start_asgi_http_server, port=port, protocol=protocol
    )


async def _start_shared(
    app: Any, options: Any, *, start: Any, port: int, protocol: Any, **settings: Any
) -> Any:
    shared = options.model_copy(update={"port": port})
    task, server = await start(app, shared, **{**settings, "enable_so_reuseport": True})
    # The task has not begun yet; uvicorn loads its configuration when it does.
    assert not server.config.loaded
    server.config.http = protocol
    # A connection that is upgraded leaves the protocol, and nothing here speaks WebSocket.
    server.config.ws = "none"
    return task, server


def stay_on_loopback() -> None:
    """Have this replica's own server listen on loopback only, where the cluster does.

    Serve binds it to every interface. To be called while the replica is constructed, which is
    before it listens.
    """
    from ray.serve._private import replica

    if ipaddress.ip_address(node_address()).is_loopback:
        replica.add_port_to_grpc_server = _on_loopback


def _on_loopback(server: Any, address: str) -> int:
    from ray._common.tls_utils import add_port_to_grpc_server

    port: int = add_port_to_grpc_server(server, address.replace("[::]", "127.0.0.1"))
    return port


def log_with_serve() -> None:
    """Send this process's own log records where Serve sends its: into the replica's log file.

    Serve gives handlers to its own logger only, so that in a replica everybody else's warnings are
    lost, and neither the dashboard nor a log shipper sees them.
    """
    handlers = logging.getLogger("ray.serve").handlers
    for package in ("cluster", "serve_app"):
        logger = logging.getLogger(package)
        logger.handlers = list(handlers)
        # Of the loggers of this package's modules a logger's own filter would see nothing.
        for handler in handlers:
            if not any(isinstance(one, PrintableRecords) for one in handler.filters):
                handler.addFilter(PrintableRecords())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def node_address() -> str:
    """The address by which other nodes reach this one."""
    import ray

    return str(ray.util.get_node_ip_address())
