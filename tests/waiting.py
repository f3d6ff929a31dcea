"""Waiting in tests, within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(happened: Callable[[], bool]) -> None:
    """Come back once `happened`; fail after ten seconds."""
    for _ in range(1000):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


def wait_for(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    """As `until`, for what happens in other processes, and may take longer."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {seconds:g} seconds")
        time.sleep(0.05)
