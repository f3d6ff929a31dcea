"""The gateway behind real sockets, asked for whatever its own description allows and more.

schemathesis makes requests of `/openapi.json`, good and bad. No answer may be a 5xx, none may hang,
and each has the shape that the description says.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from cluster.control.plane import ControlPlane
from cluster.types import Role
from serve_app.config import GatewayConfig
from serve_app.gateway.connections import Bounds, Connections
from tests.conftest import publish_adapter
from tests.fakes.fleet import FakeFleet
from tests.serve_app.test_admin import BASE, Admin

_TIMEOUT_S = 10.0
_CHECKS = (not_a_server_error, status_code_conformance, response_schema_conformance)
_CONFIG = GatewayConfig(management_rpm=10**9, max_connections_per_address=10**6)


@contextmanager
def served() -> Iterator[tuple[str, str]]:
    """A gateway with a real control plane and a fake engine: its address, and an operator's key."""
    ready, found = threading.Event(), list[str]()
    stop: list[Any] = []

    async def serve(folder: Path) -> None:
        adapter = publish_adapter(folder)
        database = f"sqlite:///{folder / 'registry.db'}"
        control = ControlPlane(database, FakeFleet(), max_rank=32, audit=folder / "audit")
        await control.serving.serve_base(BASE, "fuzz")
        admin = Admin(control, _CONFIG)
        await control.adapters.register(str(adapter), "house", "fuzz")
        await admin.add("operator", "house", Role.OPERATOR)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        http: Any = Connections(Bounds(per_address=10**6)).protocol
        config = uvicorn.Config(admin.app, http=http, ws="none", lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        stop.append(server)
        found.extend([f"http://127.0.0.1:{sock.getsockname()[1]}", admin.secrets["operator"]])
        serving = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        ready.set()
        await serving
        control.close()

    with tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=lambda: asyncio.run(serve(Path(folder))), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield found[0], found[1]
        finally:
            stop[0].should_exit = True
            thread.join(15)


def fuzz(cases: int, number: int) -> Counter[str]:
    """Send about `cases` requests, by operation and mode; what came back, by status."""
    seen = Counter[str]()
    with served() as (url, key):
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
        each = max(1, cases // (2 * len(operations)))
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _fuzz(operation, mode, each, number, key, seen)
    return seen


def _name(case: Any, path: str) -> None:
    """Have a case name what there is: most names that are made up are refused for that alone."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "all-minilm-l6-v2" if "embeddings" in path else "auto"
    if isinstance(case.body, dict) and "team_id" in case.body:
        case.body["team_id"] = "house"
    for name, value in (("name", "inventory"), ("version", "inventory@1"), ("model", "auto")):
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = value


def _fuzz(operation: Any, mode: Any, cases: int, number: int, key: str, seen: Counter[str]) -> None:
    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        if seen.total() % 2:
            _name(case, operation.path)
        response = case.call(headers=headers, timeout=_TIMEOUT_S)
        seen[str(response.status_code)] += 1
        case.validate_response(response, checks=_CHECKS)

    try:
        one()
    except Exception as error:
        if "Unsatisfiable" in type(error).__name__:
            return  # nothing of this mode can be made, such as a bad request without parameters
        raise
