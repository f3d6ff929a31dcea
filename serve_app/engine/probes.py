"""Compares what an engine says of a golden probe with what the trainer said. Knows no engine
library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.adapters import WEIGHTS, GoldenProbe

#: Nats charged for a token of the trainer's that is not among the engine's likeliest.
MISSING = 5.0


def has_head(adapter: Path) -> bool:
    """Whether an adapter changes the model's head: vLLM then cannot say what it makes of a prompt's
    own tokens, having planned for one row of each request."""
    from safetensors import safe_open

    with safe_open(adapter / WEIGHTS, "pt") as weights:
        return any("lm_head" in name for name in weights.keys())  # noqa: SIM118 - not a dict


def forced_differences(
    probe: GoldenProbe, found: Sequence[Mapping[int, Any] | None]
) -> list[float]:
    """Absolute differences in nats of the trainer's answer given as part of the prompt.

    `found` has, for each token of the answer, token id to an object with `logprob`.
    """
    differences = [
        abs(options[token].logprob - value) if options and token in options else MISSING
        for token, value, options in zip(
            probe.target_token_ids, probe.logprobs, found, strict=False
        )
    ]
    return differences or [MISSING]


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
