"""A fake engine: answers from a table, holds adapters like the real one, counts what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext

from serve_app.engine.residents import ResidentAdapters
from serve_app.generation.providers.base import OnItem, ignore
from serve_app.protocol import (
    Delta,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
    TokenLogprob,
)


async def _at_once() -> None:
    await asyncio.sleep(0)


class FakeEngine:
    """Implements `serve_app.protocol.Engine` with a fixed answer."""

    def __init__(self, answer: str = '{"intent": "thanks", "slots": {}}', logprob: float = -0.01):
        self.answer = answer
        self.logprob = logprob
        self.residents = ResidentAdapters()
        self.prompts: list[tuple[dict[str, str], ...]] = []
        self.requests: list[GenerationRequest] = []
        self.limit = 500
        self.waited_ms = 0.0
        self.wait: Callable[[], Awaitable[object]] = _at_once

    def _generation(self, request: GenerationRequest) -> Generation:
        if sum(len(m["content"]) for m in request.messages) > self.limit:
            raise PromptTooLong("too long")
        self.prompts.append(request.messages)
        self.requests.append(request)
        version = request.adapter.label if request.adapter else "base"
        if request.sampling.json_schema == '{"type": "impossible"}':
            raise NotSupported("no such type")
        top = request.sampling.top_logprobs
        tokens = [
            TokenLogprob(piece, self.logprob, [(piece, self.logprob), ("other", -5.0)][:top])
            for piece in self.answer.split(" ")
        ]
        return Generation(
            self.answer,
            version,
            5,
            7,
            "stop",
            self.logprob,
            self.logprob,
            1.0,
            2.0,
            "fake",
            tokens=None if top is None else tokens,
            waited_ms=self.waited_ms,
        )

    async def complete(self, request: GenerationRequest) -> Generation:
        generation = self._generation(request)
        if request.adapter:
            with self.residents.using(request.adapter):
                await self.wait()
        return generation

    async def stream(
        self, request: GenerationRequest, on_item: OnItem = ignore
    ) -> AsyncGenerator[Delta | Generation, None]:
        generation = self._generation(request)
        asked = request.sampling.top_logprobs is not None
        with self.residents.using(request.adapter) if request.adapter else nullcontext():
            await self.wait()
            for number, piece in enumerate(generation.text, 1):
                tokens = (TokenLogprob(piece, self.logprob),) if asked else ()
                delta = Delta(piece, tokens, generation.input_tokens, number)
                on_item(delta)
                yield delta
        on_item(generation)
        yield generation
