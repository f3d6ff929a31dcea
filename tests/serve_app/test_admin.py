"""The admin API over a real control plane: who may do what, and that it takes effect."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.audit import Head
from cluster.budget.prices import Price, PriceBook
from cluster.control.plane import ControlPlane
from cluster.records.keys import KeyRequest
from cluster.records.model import BaseModelInfo
from cluster.records.usage import MeteredUsage
from cluster.types import AdapterVersion, Role
from serve_app.config import GatewayConfig
from serve_app.gateway.app import create_app
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.rates import Rates
from tests.fakes.evaluations import report
from tests.fakes.fleet import FakeFleet
from tests.serve_app.test_gateway import GOOD, World

BASE = BaseModelInfo(name="headrace-mini", path="/base", digest="0" * 64, licence="apache-2.0")
V1, V2 = AdapterVersion("inventory", 1), AdapterVersion("inventory", 2)


class Admin:
    """Clients of one gateway, by what their keys may do."""

    def __init__(self, control: ControlPlane, config: GatewayConfig | None = None) -> None:
        self.control = control
        world = World(spend=control.ledger.exchange)
        self.app = create_app(
            pipeline=world.pipeline,
            authenticate=Authenticator(
                control.keys.resolve,
                5.0,
                lambda: control._routing.present.keys,
                rates=None if config is None else Rates(config.management_rpm),
            ),
            table=lambda: control._routing.present,
            base_model="headrace-mini",
            config=config or GatewayConfig(),
            count_tokens=len,
            budgets=world.budgets,
            control=control,
        )
        self.world = world
        self.secrets: dict[str, str] = {}

    async def add(self, name: str, tenant: str, *roles: Role) -> None:
        request = KeyRequest(tenant=tenant, roles=roles)
        self.secrets[name] = (await self.control.keys.issue(request, "test")).secret

    async def __call__(self, who: str, method: str, path: str, body: Any = None) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"Authorization": f"Bearer {self.secrets.get(who, who)}"}
            return await client.request(method, path, json=body, headers=headers)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    database = f"sqlite:///{tmp_path / 'registry.db'}"
    control = ControlPlane(database, FakeFleet(), max_rank=32, audit=tmp_path / "audit")
    await control.serving.serve_base(BASE, "test")
    admin = Admin(control)
    await admin.add("admin", "acme", Role.ADMIN)
    await admin.add("user", "acme", Role.INFERENCE)
    await admin.add("rival", "rival", Role.ADMIN)
    await admin.add("operator", "house", Role.OPERATOR)
    yield admin
    control.close()


async def test_a_key_is_made_used_bounded_and_ended(admin: Admin) -> None:
    made = await admin(
        "admin",
        "POST",
        "/key/generate",
        {
            "key_alias": "till 7",
            "user_id": "tills",
            "duration": "30d",
            "models": ["inventory"],
            "rpm_limit": 60,
            "tpm_limit": 9000,
            "max_budget": 2.5,
            "budget_duration": "1d",
        },
    )
    assert made.status_code == 200
    key = made.json()
    assert (key["key_alias"], key["team_id"], key["user_id"]) == ("till 7", "acme", "tills")
    assert (key["rpm_limit"], key["tpm_limit"], key["max_budget"]) == (60, 9000, 2.5)
    assert key["budget_duration"] == "1d"
    mine = await admin(key["key"], "GET", "/v1/models")
    assert mine.status_code == 200
    updated = await admin("admin", "POST", "/key/update", {"key": key["key"], "rpm_limit": 5})
    assert (updated.json()["rpm_limit"], updated.json()["max_budget"]) == (5, 2.5)
    told = (await admin("admin", "GET", f"/key/info?key={key['token_id']}")).json()
    assert told["info"] == {**updated.json(), "spend": 0.0}
    other = {"key": key["key"], "key_alias": "till", "models": ["care"], "duration": "2d"}
    changed = (await admin("admin", "POST", "/key/update", other)).json()
    assert (changed["key_alias"], changed["models"], changed["rpm_limit"]) == ("till", ["care"], 5)
    assert changed["expires"] is not None
    for_ever = await admin("admin", "POST", "/key/update", {"key": key["key"], "duration": "never"})
    assert (for_ever.json()["expires"], for_ever.json()["models"]) == (None, ["care"])
    unsaid = {"key": key["key"], "key_alias": None, "duration": None, "models": None}
    same = (await admin("admin", "POST", "/key/update", unsaid)).json()
    assert (same["key_alias"], same["models"], same["expires"]) == ("till", ["care"], None)
    wrong = await admin("admin", "POST", "/key/update", {"key": key["key"], "models": ["../x"]})
    assert wrong.status_code == 400
    assert key["key"] not in str(told)
    listed = (await admin("admin", "GET", "/key/list?return_full_object=true")).json()
    assert key["token_id"] in {one["token_id"] for one in listed["keys"]}
    ended = await admin("admin", "POST", "/key/delete", {"keys": [key["token_id"]]})
    assert ended.json() == {"deleted_keys": [key["token_id"]]}
    assert (await admin(key["key"], "GET", "/v1/models")).status_code == 401
    newest = await admin.control.events.newest(20)
    whose = {event["actor"] for event in newest if event["subject"] == key["token_id"]}
    assert len(whose) == 1
    assert next(iter(whose)).startswith("acme/default key ")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rpm_limit": 0}, "rpm"),
        ({"max_budget": -1}, "max_usd"),
        ({"budget_duration": "soon"}, "length of time"),
        ({"duration": "0d"}, "length of time"),
        ({"duration": "9999999d"}, "hundred years"),
        ({"user_id": "../root"}, "name"),
        ({"rpm_limit": 10**30}, "rpm"),
        ({"models": ["a/b"]}, "name"),
        ({"roles": []}, "roles"),
        ({"blocked": True}, "blocked"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
async def test_a_bad_key_request_is_refused_with_the_reason(
    admin: Admin, body: Any, field: str
) -> None:
    refused = await admin("admin", "POST", "/key/generate", body)
    assert refused.status_code == 400
    assert field in refused.json()["error"]["message"]


async def test_who_may_ask(admin: Admin) -> None:
    body: dict[str, Any] | None
    for method, path, body in (
        ("POST", "/key/generate", {}),
        ("GET", "/key/list", None),
        ("GET", "/v1/usage", None),
        ("GET", "/v1/adapters", None),
        ("POST", "/v1/adapters/inventory/kill", {"reason": "x"}),
        ("GET", "/v1/rollouts", None),
    ):
        assert (await admin("hr-nobody", method, path, body)).status_code == 401
        assert (await admin("user", method, path, body)).status_code == 403
    assert (await admin("admin", "POST", "/team/update", {"team_id": "acme"})).status_code == 403
    made = await admin("admin", "POST", "/key/generate", {"roles": ["operator"]})
    assert made.status_code == 403
    tiered = await admin("admin", "POST", "/key/generate", {"metadata": {"tier": "gold"}})
    assert tiered.status_code == 403
    body = {"metadata": {"tier": "gold"}, "team_id": "acme"}
    assert (await admin("operator", "POST", "/key/generate", body)).status_code == 200
    tiered = (await admin("operator", "POST", "/key/generate", {**body, "duration": "7d"})).json()
    changes: list[dict[str, Any]] = [{"duration": "never"}, {"models": []}]
    for change in changes:
        longer = await admin("admin", "POST", "/key/update", {"key": tiered["token_id"], **change})
        assert longer.status_code == 403, "what an operator gave is an operator's to prolong"
    named = {"key": tiered["token_id"], "key_alias": "gold", "duration": "8d"}
    assert (await admin("operator", "POST", "/key/update", named)).json()["key_alias"] == "gold"
    own = await admin("user", "GET", "/key/info")
    assert own.json()["info"]["roles"] == ["inference"]
    admins = (await admin("admin", "GET", "/key/info")).json()["key"]
    assert (await admin("user", "GET", f"/key/info?key={admins}")).status_code == 403


async def test_another_tenants_things_do_not_exist(
    admin: Admin, make_adapter: Callable[..., Path]
) -> None:
    await admin.control.adapters.register(str(make_adapter()), "acme", "test")
    mine = (await admin("admin", "GET", "/key/info")).json()["key"]
    for method, path, body in (
        ("GET", f"/key/info?key={mine}", None),
        ("POST", "/key/update", {"key": mine, "rpm_limit": 1}),
        ("POST", "/key/update", {"key": admin.secrets["user"], "rpm_limit": 1}),
        ("POST", "/key/delete", {"keys": [mine]}),
        ("POST", "/key/generate", {"team_id": "acme"}),
        ("GET", "/key/list?team_id=acme", None),
        ("GET", "/v1/usage?team_id=acme", None),
        ("GET", "/v1/adapters/inventory@1/card", None),
        ("POST", "/v1/adapters/inventory/kill", {"reason": "x"}),
        ("POST", "/v1/adapters/inventory/revive", None),
        ("POST", "/v1/adapters/inventory/grant", {"tenant": "rival"}),
        ("POST", "/v1/rollouts", {"version": "inventory@1"}),
        ("POST", "/v1/rollouts/inventory/end", {"reason": "x"}),
        ("POST", "/v1/rollouts/inventory/promote", None),
    ):
        refused = await admin("rival", method, path, body)
        assert refused.status_code == 404, (path, refused.text)
        assert admin.world.audited[-1].tenant == "rival"
    assert (await admin("rival", "GET", "/v1/adapters")).json() == {"data": []}
    assert not (await admin.control.serving.table()).killed
    assert (await admin("admin", "GET", "/key/info")).json()["info"]["blocked"] is False


async def test_adapters_are_switched_granted_and_rolled_out(
    admin: Admin, make_adapter: Callable[..., Path]
) -> None:
    control = admin.control
    await control.adapters.register(str(make_adapter()), "acme", "test")
    await control.evaluations.judge(V1, "test")
    await control.serving.promote(V1, "test")
    [row] = (await admin("admin", "GET", "/v1/adapters")).json()["data"]
    assert (row["version"], row["state"]) == ("inventory@1", "live")
    card = await admin("admin", "GET", "/v1/adapters/inventory@1/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert "# inventory@1" in card.text
    killed = await admin("admin", "POST", "/v1/adapters/inventory/kill", {"reason": "wrong prices"})
    assert killed.json()["version"] == "inventory@1"
    [row] = (await admin("admin", "GET", "/v1/adapters")).json()["data"]
    assert row["state"] == "killed"
    assert (await admin("admin", "POST", "/v1/adapters/inventory/revive")).status_code == 200
    again = await admin("admin", "POST", "/v1/adapters/inventory/revive")
    assert again.status_code == 409
    for tenant in ("rival", "*"):
        granting = "POST", "/v1/adapters/inventory/grant", {"tenant": tenant}
        assert (await admin("admin", *granting)).status_code == 403
    assert (await admin("rival", "GET", "/v1/adapters")).json()["data"] == []
    await admin("operator", "POST", "/v1/adapters/inventory/grant", {"tenant": "rival"})
    assert (await admin("rival", "GET", "/v1/adapters")).json()["data"] != []
    await admin("admin", "POST", "/v1/adapters/inventory/withdraw", {"tenant": "rival"})
    assert (await admin("rival", "GET", "/v1/adapters")).json()["data"] == []
    second = report(previous="inventory@1", previous_accuracy=0.8, wins=60, losses=10)
    await control.adapters.register(str(make_adapter(version=2, evaluation=second)), "acme", "test")
    await control.evaluations.judge(V2, "test")
    begun = await admin("admin", "POST", "/v1/rollouts", {"version": "inventory@2"})
    assert begun.status_code == 201
    [listed] = (await admin("admin", "GET", "/v1/rollouts")).json()["data"]
    assert listed["candidate"] == "inventory@2"
    assert listed["seen"]["candidate"]["requests"] == 0
    assert listed["seen"]["baseline"]["rating"] is None
    assert listed["verdict"] is None
    assert (await admin("rival", "GET", "/v1/rollouts")).json() == {"data": []}
    early = await admin("admin", "POST", "/v1/rollouts/inventory/promote")
    assert early.status_code == 409, "it has shown nothing yet"
    ended = await admin("admin", "POST", "/v1/rollouts/inventory/end", {"reason": "no"})
    assert ended.json() == {"adapter": "inventory", "ended": True}


async def test_a_tenant_reads_its_bill_and_an_operator_every_bill(admin: Admin) -> None:
    await admin.control.ledger.set_prices(PriceBook(default=Price(input=2e6)), "test")
    now = time.time()
    row = MeteredUsage("w", 0, 9, now, "acme", "k", "care@1", 3, 1, 40, 5)
    await admin.control.usage.register_writer("w")
    await admin.control.usage.record("w", Head(9, ""), [row])
    bill = (await admin("admin", "GET", "/v1/usage?since=1d")).json()
    assert (bill["tenant"], bill["usd"]) == ("acme", 80.0)
    assert bill["lines"][0]["input_tokens"] == 40
    assert (await admin("rival", "GET", "/v1/usage")).json()["lines"] == []
    assert (await admin("operator", "GET", "/v1/usage?team_id=acme")).json()["usd"] == 80.0
    assert (await admin("admin", "GET", "/v1/usage?since=never")).status_code == 400


async def test_an_operator_bounds_a_tenant(admin: Admin) -> None:
    body = {"team_id": "acme", "rpm_limit": 7}
    assert (await admin("operator", "POST", "/team/update", body)).json()["rpm_limit"] == 7
    more = {"team_id": "acme", "max_budget": 9.5}
    both = (await admin("operator", "POST", "/team/update", more)).json()
    assert (both["rpm_limit"], both["max_budget"]) == (7, 9.5)
    principal = await admin.control.keys.resolve(_digest(admin.secrets["user"]))
    assert principal is not None
    assert principal.limited == ("tenant:acme",)
    unknown = await admin("operator", "POST", "/team/update", {"team_id": "nobody", "rpm_limit": 7})
    assert unknown.status_code == 404


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
@pytest.mark.parametrize("who", ["hr-nobody", "user", "admin", "operator"])
async def test_the_engines_own_paths_are_not_reachable(admin: Admin, path: str, who: str) -> None:
    body = {"lora_name": "inventory", "lora_path": "/etc"}
    assert (await admin(who, "POST", path, body)).status_code == 404
    assert (await admin("admin", "POST", "/v1/chat/completions", GOOD)).status_code == 200


def _digest(secret: str) -> str:
    from cluster.records.keys import digest

    return digest(secret)


async def test_an_operators_key_is_out_of_its_tenants_admins_reach(admin: Admin) -> None:
    await admin.add("house-admin", "house", Role.ADMIN)
    operators = (await admin("operator", "GET", "/key/info")).json()["key"]
    for method, path, body in (
        ("GET", f"/key/info?key={operators}", None),
        ("POST", "/key/update", {"key": operators, "max_budget": 0}),
        ("POST", "/key/delete", {"keys": [operators]}),
    ):
        assert (await admin("house-admin", method, path, body)).status_code == 404
    listed = (await admin("house-admin", "GET", "/key/list")).json()["keys"]
    assert operators not in listed
