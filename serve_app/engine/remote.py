"""The engine seen from the gateway: a Serve handle behind the engine protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from serve_app.protocol import (
    AdapterGone,
    Delta,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
)

Expected = AdapterGone | PromptTooLong | NotSupported
_KINDS: dict[str, type[Expected]] = {
    "gone": AdapterGone,
    "too_long": PromptTooLong,
    "not_supported": NotSupported,
}


@dataclass(frozen=True)
class EngineFault:
    """An expected error on its way over the wire."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: Expected) -> EngineFault:
        """The wire form of `error`."""
        return cls(next(k for k, v in _KINDS.items() if isinstance(error, v)), str(error))

    def raised(self) -> Expected:
        """The error this stands for."""
        return _KINDS[self.kind](self.message)


class RemoteEngine:
    """Implements `serve_app.protocol.Engine` over a deployment handle."""

    def __init__(self, handle: Any) -> None:
        handle = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._complete = handle.complete
        self._stream = handle.options(stream=True).stream

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.protocol.Engine.complete`."""
        result = await self._complete.remote(request)
        if isinstance(result, EngineFault):
            raise result.raised()
        assert isinstance(result, Generation)
        return result

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        """See `serve_app.protocol.Engine.stream`."""
        async for item in self._stream.remote(request):
            if isinstance(item, EngineFault):
                raise item.raised()
            yield item
