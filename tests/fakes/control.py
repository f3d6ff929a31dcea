"""A test double of the control client: services that a test supplies, called as jobs call them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class ControlDouble:
    """Has the services it is made with, each any object with the methods that the test needs."""

    name = "test"

    def __init__(self, **services: Any) -> None:
        self.__dict__.update(services)

    def __getattr__(self, service: str) -> Any:
        raise AssertionError(f"the test supplies no {service} service")

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)
