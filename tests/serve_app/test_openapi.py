"""The gateway's description says what the gateway does."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from cluster.types import Principal, Role
from serve_app.gateway.admission import Admission
from serve_app.gateway.fast_path import FastPath
from serve_app.gateway.openapi import OPERATIONS, describe
from tests.serve_app.test_gateway import GOOD, World


def _application(world: World) -> Starlette:
    admission: Any = world.app
    assert isinstance(admission, Admission)
    shortcuts: Any = admission._app
    assert isinstance(shortcuts, FastPath)
    app: Any = shortcuts._app
    assert isinstance(app, Starlette)
    return app


def test_it_has_every_route_and_no_other() -> None:
    routes = {
        (method, route.path.replace(":path", ""))
        for route in _application(World()).routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert routes == {(one.method, one.path) for one in OPERATIONS}


@pytest.fixture
async def client() -> Any:
    transport = httpx.ASGITransport(app=World().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


async def test_it_is_served_to_anybody(client: httpx.AsyncClient) -> None:
    found = (await client.get("/openapi.json")).json()
    assert found == describe()
    assert found["openapi"] == "3.1.0"
    assert "\\u0000" not in str(found)


@pytest.mark.parametrize("one", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
async def test_each_wants_the_role_that_it_says(
    one: Any, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one.path.replace("{model}", "x").replace("{name}", "x").replace("{version}", "x@1")
    answer = await client.request(one.method, path, json={} if one.body else None)
    if one.role is None:
        assert answer.status_code == 200
        return
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert set(describe()["components"]["schemas"]["Error"]["properties"]["error"]["required"]) <= (
        set(error)
    )
    world, without = World(), {Role.INFERENCE: Role.LABEL, Role.LABEL: Role.INFERENCE}
    lacking = without.get(one.role, Role.INFERENCE)

    async def resolve(_digest: str) -> Principal:
        return Principal("k", "acme", frozenset({lacking}))

    world._resolve = resolve  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(World, "_resolve", staticmethod(resolve))
    transport = httpx.ASGITransport(app=World().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as other:
        headers = {"Authorization": "Bearer hr-any"}
        refused = await other.request(one.method, path, json=GOOD, headers=headers)
    assert refused.status_code == 403, "another role does not do"
