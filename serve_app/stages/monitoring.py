"""Monitoring: confidence from token log-probabilities, and which requests are edge cases."""

from __future__ import annotations

import hashlib
import math

from cluster.records.trace import Verdicts
from serve_app.config import MonitoringConfig
from serve_app.protocol import Envelope


class Monitoring:
    """Judges each answer by the model's own certainty and the router's novelty."""

    def __init__(self, config: MonitoringConfig) -> None:
        self._config = config

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Write the verdicts of each envelope."""
        for envelope in batch:
            envelope.verdicts = self._judge(envelope)
        return batch

    def _judge(self, envelope: Envelope) -> Verdicts:
        generation, route = envelope.generation, envelope.route
        if generation is None:
            return Verdicts(0.0, 0.0)
        confidence = math.exp(generation.mean_logprob)
        weakest = math.exp(generation.min_logprob)
        reasons = []
        if confidence < self._config.min_confidence or weakest < self._config.min_weakest:
            reasons.append("low_confidence")
        if route is not None and route.novelty > self._config.max_novelty:
            reasons.append("out_of_distribution")
        sampled = not reasons and share_of(envelope.trace_id) < self._config.sample_share
        return Verdicts(round(confidence, 5), round(weakest, 5), reasons, sampled)


def share_of(trace_id: str) -> float:
    """A fixed, uniform number in [0, 1) for a trace: sampling that replays the same."""
    return int.from_bytes(hashlib.sha256(trace_id.encode()).digest()[:6], "big") / 2**48
