"""The contract of a provider: what generates the answers of targets.

It retries on its own replicas where nothing was shown yet; which target to try next is the attempt
loop's decision, never the provider's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from serve_app.protocol import Delta, Generation, GenerationRequest

OnItem = Callable[[Delta | Generation], None]
"""Called with each item as soon as the gateway has it, however far behind its client reads: what
was generated is paid for."""


def ignore(_item: Delta | Generation) -> None:
    """The callback of those who need none."""


class Provider(Protocol):
    """Generates answers. Its errors are those of `serve_app.protocol.Engine`."""

    async def complete(self, request: GenerationRequest) -> Generation:
        """The whole answer.

        Raises:
            AdapterGone: no replica holds the target's adapter now; resolve again.
            AdapterKilled: the adapter is switched off, perhaps since this request began.
            PromptTooLong: prompt and answer do not fit the context.
            NotSupported: the target cannot generate what was asked for.
            EngineFailed: the provider broke on this request.
        """
        ...

    def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        """The answer as it comes, then its `Generation`; errors as in `complete`.

        AdapterGone is raised before the first item only.
        """
        ...
