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


def wait_for(happened: Callable[[], bool]) -> None:
    """As `until`, for what happens in other processes."""
    for _ in range(200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within ten seconds")
