"""Admission: cheap refusals that tell clients when to come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.gateway.admission import Admission, patience


class Client:
    """Calls an ASGI application and keeps what it sends."""

    def __init__(self, full: bool) -> None:
        self.full, self.now, self.reached = full, 100.0, 0
        self.admission = Admission(self._app, lambda: self.full, lambda: self.now)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1

    async def ask(self, path: str = "/v1/chat/completions") -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("a refusal must not read the body")

        await self.admission({"type": "http", "method": "POST", "path": path}, receive, send)
        return sent


async def test_a_full_gateway_refuses_without_reading_and_says_when_to_return() -> None:
    client = Client(full=True)
    start, body = await client.ask()
    assert (start["status"], client.reached) == (429, 0)
    assert json.loads(body["body"])["error"]["code"] == "overloaded"
    assert int(dict(start["headers"])[b"retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/labels/next"])
async def test_what_costs_no_engine_is_never_refused(path: str) -> None:
    client = Client(full=True)
    assert await client.ask(path) == []
    assert client.reached == 1


async def test_refusals_grow_more_patient_with_the_crowd_and_forget_it() -> None:
    client = Client(full=True)
    for _ in range(40):
        await client.ask()
    client.now += 1
    crowded = dict((await client.ask())[0]["headers"])[b"retry-after"]
    client.now += 5
    later = dict((await client.ask())[0]["headers"])[b"retry-after"]
    assert int(crowded) >= 8
    assert int(later) <= 2


def test_patience_is_bounded_and_spread() -> None:
    assert patience(0, 0, 0.0) == 1
    assert {patience(100, 30, draw / 10) for draw in range(10)} == {3, 4, 5}
    assert max(patience(0, 10**6, draw / 10) for draw in range(10)) <= 12
