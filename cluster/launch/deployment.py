"""The serving side of a working folder: its control plane, then the graph that answers.

Drives the graph from outside, as a command; imports none of it.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx

from cluster.base_models import describe
from cluster.control.client import ControlClient
from cluster.errors import ConflictError, HeadraceError
from cluster.launch import local as runtime
from cluster.launch.site import INDEX, ROUTER, Site
from cluster.records.model import BaseModelInfo

_READY_S = 240.0
_MAX_RANK = 32


class Deployment:
    """The control plane and the graph of one site."""

    def __init__(self, site: Site, port: int) -> None:
        self._site, self._port = site, port
        self._deploying: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Where OpenAI's clients find it."""
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> ControlClient:
        """Bring the control plane up and begin to deploy the graph; `await_serving` waits for it.

        What the folder's registry says is live is served again.

        Raises:
            ConflictError: its adapters stand on another base model than the configuration names.
        """
        site = self._site
        database = site.config.database or f"sqlite:///{site.path('registry.db')}"
        runtime.start_control(database, max_rank=_MAX_RANK, audit=Path(site.path("state", "audit")))
        control = ControlClient()
        info = describe(Path(site.base_model))
        _require_same(control, info)
        control.do(control.serving.serve_base(info, control.name))
        settings: dict[str, object] = {
            "base_model.path": site.base_model,
            "state": site.path("state"),
            "routing.artefact": site.path(*ROUTER),
            "context.index": site.path(*INDEX),
            "gateway.port": self._port,
        }
        command = site.module_command("serve_app.main", site.config.serve, settings)
        with (site.workdir / "deploy.log").open("wb") as log:
            self._deploying = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                [*command, "--workdir", str(site.workdir)], stdout=log, stderr=subprocess.STDOUT
            )
        return control

    def check(self) -> None:
        """Raise as soon as the deployment is known to have failed.

        Raises:
            HeadraceError: it has.
        """
        if self._deploying is not None and self._deploying.poll() not in {None, 0}:
            tail = (self._site.workdir / "deploy.log").read_text(errors="replace")[-2000:]
            raise HeadraceError(f"the serving graph did not come up:\n{tail}")

    def await_serving(self) -> list[str]:
        """Block until the gateway answers; the names of its stages.

        Raises:
            HeadraceError: the deployment failed or is not up in time.
        """
        assert self._deploying is not None
        deadline = time.monotonic() + _READY_S
        while self._deploying.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        if self._deploying.poll() is None:
            self._deploying.kill()
            self._deploying.wait()
        self.check()
        health = httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=30).raise_for_status()
        return [str(stage) for stage in health.json()["stages"]]


def _require_same(control: ControlClient, wanted: BaseModelInfo) -> None:
    """Refuse to change the base model implicitly: that would retire every adapter."""
    if not control.do(control.adapters.listed()):
        return
    served = control.do(control.adapters.base_model())
    if served.digest != wanted.digest:
        raise ConflictError(
            f"this folder's adapters stand on {served.name} ({served.digest[:12]}, {served.path}), "
            f"not on {wanted.path} ({wanted.digest[:12]}): name theirs in --config"
        )
