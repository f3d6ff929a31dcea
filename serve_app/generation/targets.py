"""The targets of this gateway: the base model, every adapter version on it, and their profiles."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from cluster.records.adapter import ServedAdapter
from cluster.records.model import ModelProfile, Target
from serve_app.protocol import Generation

#: Name of the provider whose engines serve the base model and its adapters.
VLLM = "vllm"
CAPABILITIES = frozenset({"chat", "completion", "tools", "json_schema", "logprobs", "stream"})
#: Weight of a new measurement in the moving average.
_WEIGHT = 0.1
_REMEMBERED = 16_384


class Targets:
    """Makes targets, and measures how fast each answers."""

    def __init__(self, base: str, profile: ModelProfile) -> None:
        """`base` is the base model's name, `profile` what every target on it has in common."""
        self.base = Target(base, VLLM)
        self._profile = profile
        # LRU eviction: an adapter that is asked for again is measured again.
        self._measured: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @staticmethod
    def of(adapter: ServedAdapter) -> Target:
        """The target of an adapter version."""
        return Target(adapter.label, VLLM, adapter)

    def profile(self, target: Target) -> ModelProfile:
        """What is known of `target` now."""
        measured = self._measured.get(target.id)
        if measured is None:
            return self._profile
        return replace(self._profile, first_token_ms=measured[0], token_ms=measured[1])

    @property
    def window(self) -> int:
        """The largest context window of any target, in tokens."""
        return self._profile.window

    def observe(self, target: Target, found: Generation) -> None:
        """Take the latency of a streamed answer into the target's profile; a whole one does not
        tell when its first token came."""
        if found.first_token_ms is None:
            return
        # Without the wait for its adapter's turn, which says nothing of the model.
        first = max(0.0, found.first_token_ms - found.waited_ms)
        token = max(0.0, found.total_ms - found.first_token_ms) / max(1, found.output_tokens - 1)
        before = self._measured.get(target.id)
        if before is not None:
            first = before[0] + _WEIGHT * (first - before[0])
            token = before[1] + _WEIGHT * (token - before[1])
        self._measured[target.id] = (first, token)
        self._measured.move_to_end(target.id)
        while len(self._measured) > _REMEMBERED:
            self._measured.popitem(last=False)
