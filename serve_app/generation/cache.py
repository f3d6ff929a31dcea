"""The response cache: answers to prompts that were answered before, exactly or nearly so.

An entry belongs to one tenant, one adapter version, one policy and one way of sampling, so a swap,
a changed rule or another tenant never meets it. What is kept is masked text: a cached answer gets
the values of the request that asks now. Bounded in number and in time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve_app.config import CacheConfig
from serve_app.protocol import Envelope, Generation


@dataclass(frozen=True)
class Slot:
    """Where an envelope's answer is looked for. The scope never mixes what must stay apart."""

    scope: str
    prompt: str
    vector: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Entry:
    scope: str
    generation: Generation
    vector: NDArray[np.float32] | None
    until: float


class ResponseCache:
    """Least recently used entries go first. Times are seconds on any clock that only goes on."""

    def __init__(self, config: CacheConfig, policy_version: str) -> None:
        self._config = config
        self._policy = policy_version
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def slot(self, envelope: Envelope, version: str) -> Slot | None:
        """Where to look; None where the answer must not be cached: chance has a part in it."""
        sampling = envelope.sampling
        if self._config.mode == "off" or (sampling.temperature > 0 and sampling.seed is None):
            return None
        shape = [version, self._policy, envelope.chat, str(envelope.constraints)]
        shape += [vars(sampling), envelope.tools]
        scope = _digest([envelope.tenant, *shape])
        vector = None
        # A text that stands in for personal data says nothing of what the data were about, and a
        # conversation is more than its last message: only the exact prompt will do for those.
        if self._config.mode == "semantic" and envelope.embedding and _alone(envelope):
            vector = np.frombuffer(envelope.embedding, dtype=np.float32)
        return Slot(scope, _digest([scope, envelope.prompt or envelope.messages]), vector)

    def get(self, slot: Slot, now: float) -> Generation | None:
        """The answer kept for `slot`, or for a prompt as similar as the floor asks."""
        entry = self._entries.get(slot.prompt)
        if entry is not None and entry.until > now:
            self._entries.move_to_end(slot.prompt)
            return replace(entry.generation)
        if entry is not None:
            del self._entries[slot.prompt]
        return self._nearest(slot, now)

    def _nearest(self, slot: Slot, now: float) -> Generation | None:
        if slot.vector is None:
            return None
        near = [
            entry
            for entry in self._entries.values()
            if entry.scope == slot.scope and entry.vector is not None and entry.until > now
        ]
        if not near:
            return None
        scores = np.stack([e.vector for e in near if e.vector is not None]) @ slot.vector
        best = int(scores.argmax())
        if float(scores[best]) < self._config.min_similarity:
            return None
        return replace(near[best].generation)

    def put(self, slot: Slot, generation: Generation, now: float) -> None:
        """Keep an answer that came to its end."""
        if generation.finish_reason != "stop":
            return
        kept = replace(generation)
        self._entries[slot.prompt] = _Entry(slot.scope, kept, slot.vector, now + self._config.ttl_s)
        self._entries.move_to_end(slot.prompt)
        while len(self._entries) > self._config.max_entries:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


def _alone(envelope: Envelope) -> bool:
    return len(envelope.messages) == 1 and not envelope.masked


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
