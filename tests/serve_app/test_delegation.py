"""What a key that is limited may do to others: give no more than it has."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.audit import Head
from cluster.control.plane import ControlPlane
from cluster.records.keys import KeyRequest
from cluster.records.usage import MeteredUsage
from cluster.types import Role
from tests.fakes.fleet import FakeFleet
from tests.fakes.traces import refusal_of
from tests.serve_app.test_admin import BASE, Admin


@pytest.fixture
async def admin(tmp_path: Path, make_adapter: Callable[..., Path]) -> AsyncIterator[Admin]:
    database = f"sqlite:///{tmp_path / 'registry.db'}"
    control = ControlPlane(database, FakeFleet(), max_rank=32, audit=tmp_path / "audit")
    await control.serving.serve_base(BASE, "test")
    for name in ("care", "stock"):
        await control.adapters.register(str(make_adapter(name=name)), "acme", "test")
    admin = Admin(control)
    await admin.add("admin", "acme", Role.ADMIN)
    bounds: dict[str, dict[str, Any]] = {
        "scoped": {"models": ("care",)},
        "brief": {"lasts_s": 3600.0},
        "bounded": {"limits": {"rpm": 9}},
    }
    for name, more in bounds.items():
        request = KeyRequest.model_validate({"tenant": "acme", "roles": (Role.ADMIN,), **more})
        admin.secrets[name] = (await control.keys.issue(request, "test")).secret
    yield admin
    control.close()


@pytest.mark.parametrize(
    ("who", "wanted", "status"),
    [
        ("admin", {}, 200),
        ("scoped", {}, 403),
        ("scoped", {"models": ["care", "stock"]}, 403),
        ("scoped", {"models": ["care"]}, 200),
        ("brief", {}, 403),
        ("brief", {"duration": "2h"}, 403),
        ("brief", {"duration": "30m"}, 200),
        ("bounded", {}, 403),
        ("bounded", {"rpm_limit": 1}, 403),
    ],
)
async def test_no_key_makes_one_that_has_more(
    admin: Admin, who: str, wanted: dict[str, Any], status: int
) -> None:
    made = await admin(who, "POST", "/key/generate", wanted)
    assert made.status_code == status, made.text
    if status == 403:
        assert made.json()["error"]["message"].startswith("this key ")
        assert refusal_of(admin.world.audited[-1]) is not None


@pytest.mark.parametrize(
    ("who", "change", "status"),
    [
        ("scoped", {"models": []}, 403),
        ("scoped", {"models": ["stock"]}, 403),
        ("scoped", {"key_alias": "mine"}, 200),
        ("scoped", {"rpm_limit": 5}, 200),
        ("brief", {"duration": "never"}, 403),
        ("brief", {"duration": "2h"}, 403),
        ("brief", {"duration": "10m"}, 200),
        ("bounded", {"rpm_limit": "none"}, 403),
        ("bounded", {"rpm_limit": 99}, 403),
        ("bounded", {"max_budget": 1.0}, 403),
        ("bounded", {"key_alias": "mine", "rpm_limit": 9}, 200),
    ],
)
async def test_no_key_frees_itself(
    admin: Admin, who: str, change: dict[str, Any], status: int
) -> None:
    before = (await admin(who, "GET", "/key/info")).json()
    changed = await admin(who, "POST", "/key/update", {"key": before["key"], **change})
    assert changed.status_code == status, changed.text
    if status == 403:
        assert (await admin(who, "GET", "/key/info")).json() == before


async def test_a_key_for_one_adapter_manages_no_other_and_no_key_for_more(admin: Admin) -> None:
    rows = (await admin("scoped", "GET", "/v1/adapters")).json()["data"]
    assert [row["version"] for row in rows] == ["care@1"]
    assert len((await admin("admin", "GET", "/v1/adapters")).json()["data"]) == 2
    for method, path, body in (
        ("GET", "/v1/adapters/stock@1/card", None),
        ("POST", "/v1/adapters/stock/kill", {"reason": "x"}),
        ("POST", "/v1/adapters/stock/revive", None),
        ("POST", "/v1/adapters/stock/withdraw", {"tenant": "rival"}),
        ("POST", "/v1/rollouts", {"version": "stock@1"}),
        ("POST", "/v1/rollouts/stock/end", {"reason": "x"}),
    ):
        assert (await admin("scoped", method, path, body)).status_code == 404, path
    assert (await admin("scoped", "GET", "/v1/adapters/care@1/card")).status_code == 200
    whole = (await admin("admin", "GET", "/key/info")).json()["key"]
    mine = (await admin("scoped", "GET", "/key/info")).json()["key"]
    for path in (f"/key/info?key={whole}", f"/key/info?key={admin.secrets['admin']}"):
        assert (await admin("scoped", "GET", path)).status_code == 404
    change: dict[str, Any]
    for path, change in (
        ("/key/delete", {"keys": [whole]}),
        ("/key/update", {"key": whole, "rpm_limit": 1}),
    ):
        assert (await admin("scoped", "POST", path, change)).status_code == 404
    assert (await admin("scoped", "GET", "/key/list")).json()["keys"] == [mine]


async def test_a_kill_may_be_undone_with_another_version(admin: Admin) -> None:
    await admin("admin", "POST", "/v1/adapters/care/kill", {"reason": "wrong prices"})
    revive = "/v1/adapters/care/revive"
    for wrong in ({"version": 0}, {"version": "one"}, {"number": 1}):
        assert (await admin("admin", "POST", revive, wrong)).status_code == 400
    unpassed = await admin("admin", "POST", revive, {"version": 1})
    assert unpassed.status_code == 409
    assert "only a passed version" in unpassed.json()["error"]["message"]
    assert (await admin("admin", "POST", revive)).status_code == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"rpm_limit": "none"}, 403),
        ({"rpm_limit": 100}, 403),
        ({"rpm_limit": 5}, 200),
        ({"tpm_limit": 5}, 200),
        ({"models": []}, 403),
        ({"models": ["care", "stock"]}, 403),
        ({"models": ["care"]}, 200),
        ({"duration": "30d"}, 403),
        ({"duration": "1m"}, 200),
        ({"key_alias": "till"}, 200),
    ],
)
async def test_what_an_operator_bounds_a_tenants_admin_may_only_narrow(
    admin: Admin, change: dict[str, Any], status: int
) -> None:
    await admin.add("operator", "ops", Role.OPERATOR)
    bounds = {"models": ["care"], "duration": "1h", "rpm_limit": 9}
    made = await admin("operator", "POST", "/key/generate", {"team_id": "acme", **bounds})
    key = made.json()["token_id"]
    answer = await admin("admin", "POST", "/key/update", {"key": key, **change})
    assert answer.status_code == status, answer.text
    assert (await admin("operator", "POST", "/key/update", {"key": key, **change})).is_success


async def test_a_bound_that_an_operator_adds_is_held_and_one_it_lifts_is_free(admin: Admin) -> None:
    await admin.add("operator", "ops", Role.OPERATOR)
    key = (await admin("admin", "POST", "/key/generate", {})).json()["token_id"]

    async def bound(who: str, rpm: int | str) -> int:
        body = {"key": key, "rpm_limit": rpm}
        return (await admin(who, "POST", "/key/update", body)).status_code

    assert [await bound("admin", 3), await bound("admin", "none")] == [200, 200]
    assert [await bound("operator", 3), await bound("admin", "none")] == [200, 403]
    assert [await bound("operator", "none"), await bound("admin", 7)] == [200, 200]


async def test_the_bill_of_a_key_for_one_adapter_has_that_adapter_only(admin: Admin) -> None:
    await admin.control.usage.register_writer("w")
    rows = [
        MeteredUsage("w", 0, 9, time.time(), "acme", "k", version, 1, 0, 10, 5)
        for version in ("care@1", "stock@1", "base-model")
    ]
    await admin.control.usage.record("w", Head(9, ""), rows)
    whole, mine = [
        (await admin(who, "GET", "/v1/usage?since=1d")).json() for who in ("admin", "scoped")
    ]
    assert [line["version"] for line in whole["lines"]] == ["base-model", "care@1", "stock@1"]
    assert [line["version"] for line in mine["lines"]] == ["care@1"]
    assert whole["training_seconds"] == 2 * mine["training_seconds"] > 0
