"""Tasks that serve several requests at once and so belong to none of them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any


def apart(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` outside the request that happened to start it.

    A client that goes away has everything cancelled that was called in its request's context, and
    a call that carries other requests too must not be among that.
    """
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())
