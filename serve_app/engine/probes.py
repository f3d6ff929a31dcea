"""Compares an engine's greedy answer with the trainer's golden probe. Knows no engine library."""

from __future__ import annotations

from typing import Any

from cluster.adapters import GoldenProbe

#: Nats charged for a token of the trainer's that is not among the engine's likeliest.
MISSING = 5.0


def probe_differences(probe: GoldenProbe, piece: Any) -> list[float]:
    """Absolute differences in nats, token by token, up to where the greedy answers part.

    `piece` has `token_ids` and, for each, `logprobs`: token id to an object with `logprob`.
    """
    differences: list[float] = []
    for expected, value, written, options in zip(
        probe.target_token_ids, probe.logprobs, piece.token_ids, piece.logprobs, strict=False
    ):
        found = options.get(expected)
        differences.append(abs(found.logprob - value) if found else MISSING)
        if written != expected:
            break
    return differences or [MISSING]
