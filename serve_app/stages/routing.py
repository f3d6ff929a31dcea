"""Routing: embeds the request, recognises its intent, picks an adapter with a confidence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.records.trace import Route
from serve_app.config import RoutingConfig
from serve_app.protocol import EMBEDDING_MODEL, Envelope, last_user_text
from serve_app.routing.router import Router

AUTO = "auto"
#: A lone text of so many characters is embedded in some three milliseconds; to hand it to a thread
#: and back takes a tenth of that, and no other request waits for it.
_SHORT = 200


class Embedder(Protocol):
    """Texts to unit vectors, shape (texts, dimensions), float32."""

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed `texts`."""
        ...


def lazily(make: Callable[[], Embedder]) -> Embedder:
    """An embedder that is made when it is first called: few graphs are asked for embeddings."""
    made: list[Embedder] = []
    making = threading.Lock()

    def embed(texts: list[str]) -> NDArray[np.float32]:
        with making:
            if not made:
                made.append(make())
        return made[0](texts)

    return embed


class Routing:
    """One vectorised embedding and one matrix product for the whole batch.

    `embed` makes the vectors requests are routed by; `sentences` those that clients ask for.
    """

    def __init__(
        self,
        embed: Embedder,
        sentences: Embedder,
        router: Router,
        config: RoutingConfig,
        base_model: str,
    ) -> None:
        self._embed = embed
        self._sentences = sentences
        self._router = router
        self._config = config
        self._base_model = base_model

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Give each envelope its embedding, and its route where it is to be routed."""
        asked = [envelope for envelope in batch if envelope.model == EMBEDDING_MODEL]
        if asked:
            texts = [last_user_text(envelope.messages) for envelope in asked]
            vectors = await asyncio.to_thread(self._sentences, texts)
            for envelope, vector in zip(asked, vectors, strict=True):
                envelope.embedding = vector.tobytes()
        routed = [envelope for envelope in batch if envelope.model != EMBEDDING_MODEL]
        if routed:
            await self._route(routed)
        return batch

    async def _route(self, batch: list[Envelope]) -> None:
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
