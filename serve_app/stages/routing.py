"""Routing: embeds the request, recognises its intent, picks an adapter with a confidence."""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.config import RoutingConfig
from serve_app.protocol import Envelope, Route, last_user_text
from serve_app.routing.router import Router

AUTO = "auto"
#: A lone text of so many characters is embedded in some three milliseconds; to hand it to a thread
#: and back takes a tenth of that, and nobody else is waiting.
_SHORT = 200


class Embedder(Protocol):
    """Texts to unit vectors, shape (texts, dimensions), float32."""

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed `texts`."""
        ...


class Routing:
    """One vectorised embedding and one matrix product for the whole batch."""

    def __init__(
        self, embed: Embedder, router: Router, config: RoutingConfig, base_model: str
    ) -> None:
        self._embed = embed
        self._router = router
        self._config = config
        self._base_model = base_model

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Give each envelope its embedding and its route."""
        texts = [last_user_text(envelope.messages) for envelope in batch]
        if len(texts) == 1 and len(texts[0]) <= _SHORT:
            vectors = self._embed(texts)
        else:
            vectors = await asyncio.to_thread(self._embed, texts)
        for envelope, vector, guess in zip(batch, vectors, self._router(vectors), strict=True):
            envelope.embedding = vector.tobytes()
            adapter: str | None = guess.adapter
            reason = f"intent {guess.intent} of {guess.adapter}"
            if envelope.model == self._base_model:
                adapter, reason = None, "the client asked for the base model"
            elif envelope.model != AUTO:
                adapter = envelope.model.partition("@")[0]
                reason = "the client named the adapter"
            elif guess.confidence < self._config.min_confidence:
                adapter, reason = None, f"confidence {guess.confidence:.2f} is below the floor"
            envelope.route = Route(adapter, guess.intent, guess.confidence, guess.novelty, reason)
        return batch
