"""Runs `headrace up`: serves what was made in a working folder before, until `headrace down`."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType

from cluster.errors import HeadraceError
from cluster.launch import local as runtime
from cluster.launch.config import LocalConfig
from cluster.launch.site import Site
from cluster.progress import ProgressReporter


def run(*, config: LocalConfig, workdir: Path, port: int) -> int:
    """Serve from `workdir` until Ctrl-C, `headrace down`, or the end of the cluster."""
    progress = ProgressReporter()
    workdir = workdir.resolve()
    runtime.require_free_port(port)
    site = Site.existing(config, workdir, progress)
    with (workdir / "driver.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
        try:
            _serve(site, port)
        except KeyboardInterrupt:
            progress.say("interrupted; stopping what was started")
        finally:
            disconnect()
            if site.cluster is not None:  # else another's, that came up first
                runtime.stop(workdir)
    return 0


def _serve(site: Site, port: int) -> None:
    progress = site.progress
    progress.step(f"Start a Ray cluster on {site.workdir} (token auth on, loopback only)")
    cluster = site.start_cluster()
    # After Ray, which installs a handler of its own that would skip the clean-up above.
    signal.signal(signal.SIGTERM, interrupt)
    progress.say(f"Ray at {cluster.address}, dashboard {cluster.dashboard}")
    # Ray reads its authentication settings when it is imported: after the cluster is up.
    from cluster.launch.deployment import Deployment

    deployment = Deployment(site, port)
    progress.step("Deploy the graph: gateway, seven stages, vLLM engine")
    control = deployment.start()
    deployment.await_serving()
    live = sorted(adapter.label for adapter in control.do(control.serving.table()).live.values())
    progress.say(f"live: {', '.join(live) or 'nothing yet'}")
    progress.step("Serving; Ctrl-C or ./scripts/down stops it")
    progress.say(f"base URL  {deployment.base_url}")
    progress.say("API key   those issued before hold; another: headrace keys issue --tenant NAME")
    progress.say(f"dashboard {cluster.dashboard}")
    stay(site.workdir)


def stay(workdir: Path) -> None:
    """Wait until the cluster of `workdir` is stopped.

    Raises:
        HeadraceError: it ended by itself.
    """
    while runtime.running(workdir) is not None:
        time.sleep(0.5)
    if runtime.died(workdir):
        raise HeadraceError(
            f"the Ray cluster ended by itself: its own logs are in "
            f"{runtime.ray_logs(workdir)}, ours in {workdir}; `headrace up` serves what is there "
            "again"
        )


def disconnect() -> None:
    """Leave the cluster, where this process has come to one."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """A signal's handler: what Ctrl-C does."""
    raise KeyboardInterrupt
