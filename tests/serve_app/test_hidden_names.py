"""What is another's is answered as what does not exist, on every route that takes a name."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.control.plane import ControlPlane
from cluster.types import Role
from tests.fakes.fleet import FakeFleet
from tests.serve_app.test_admin import BASE, Admin

HIDDEN, ABSENT = "hidden", "absent"


@pytest.fixture
async def admin(tmp_path: Path, make_adapter: Callable[..., Path]) -> AsyncIterator[Admin]:
    """`hidden` is live, and another tenant's."""
    database = f"sqlite:///{tmp_path / 'registry.db'}"
    control = ControlPlane(database, FakeFleet(), max_rank=32, audit=tmp_path / "audit")
    await control.serving.serve_base(BASE, "test")
    version = await control.adapters.register(str(make_adapter(name=HIDDEN)), "rival", "test")
    await control.evaluations.judge(version, "test")
    await control.serving.promote(version, "test")
    admin = Admin(control)
    await admin.add("admin", "acme", Role.ADMIN)
    yield admin
    control.close()


def _chat(name: str) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": "hi"}]}


ROUTES: list[tuple[str, str, Callable[[str], Any]]] = [
    ("POST", "/v1/chat/completions", _chat),
    ("POST", "/v1/chat/completions", lambda name: _chat(f"{name}@1")),
    ("POST", "/v1/chat/completions", lambda name: {**_chat(name), "stream": True}),
    ("POST", "/v1/completions", lambda name: {"model": name, "prompt": "hi"}),
    ("POST", "/v1/embeddings", lambda name: {"model": name, "input": "hi"}),
    ("GET", "/v1/models/{name}", lambda _: None),
    ("GET", "/v1/models/{name}@1", lambda _: None),
    (
        "POST",
        "/v1/feedback",
        lambda name: {"trace_id": "tr-1", "model": f"{name}@1", "rating": 5},
    ),
    ("GET", "/v1/adapters/{name}@1/card", lambda _: None),
    ("POST", "/v1/adapters/{name}/kill", lambda _: {"reason": "x"}),
    ("POST", "/v1/adapters/{name}/revive", lambda _: {}),
    ("POST", "/v1/adapters/{name}/grant", lambda _: {"tenant": "acme"}),
    ("POST", "/v1/adapters/{name}/withdraw", lambda _: {"tenant": "acme"}),
    ("POST", "/v1/rollouts", lambda name: {"version": f"{name}@1"}),
    ("POST", "/v1/rollouts/{name}/end", lambda _: {"reason": "x"}),
    ("POST", "/v1/rollouts/{name}/promote", lambda _: None),
    ("GET", "/v1/usage?team_id={name}", lambda _: None),
    ("GET", "/key/info?key={name}", lambda _: None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_what_is_anothers_is_not_there(
    admin: Admin, method: str, path: str, body: Callable[[str], Any]
) -> None:
    told = []
    for name in (HIDDEN, ABSENT):
        answer = await admin("admin", method, path.replace("{name}", name), body(name))
        own = ("content-length", "x-headrace-trace-id")
        headers = {name: value for name, value in answer.headers.items() if name not in own}
        told.append((answer.status_code, headers, answer.text.replace(name, "NAME")))
    assert told[0] == told[1]
    assert 400 <= told[0][0] < 500
