"""Compares what an engine says of a golden probe with what the trainer said. Knows no engine
library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.adapters import WEIGHTS, GoldenProbe

#: Of at least so many prompts and tokens together: a step is that much longer, and two adapters for
#: the same task differ by 0.3 nats in a token of their prompts.
_GIVEN_PROMPTS, _GIVEN_TOKENS = 2, 16
#: Nats charged for a token of the trainer's that is not among the engine's likeliest.
MISSING = 5.0


def has_head(adapter: Path) -> bool:
    """Whether an adapter changes the model's head: vLLM then cannot say what it makes of a prompt's
    own tokens, having planned for one row of each request."""
    from safetensors import safe_open

    with safe_open(adapter / WEIGHTS, "pt") as weights:
        return any("lm_head" in name for name in weights.keys())  # noqa: SIM118 - not a dict


def to_give(golden: Iterable[GoldenProbe]) -> list[GoldenProbe]:
    """The first probes that show enough by their prompts; none where they all do not."""
    found, shown = list[GoldenProbe](), 0
    for probe in golden:
        enough = len(found) >= _GIVEN_PROMPTS and shown >= _GIVEN_TOKENS
        if probe.prompt_logprobs and not enough:
            found.append(probe)
            shown += len(probe.prompt_logprobs)
    return found if shown >= _GIVEN_TOKENS else []


def least_certain(logprobs: Sequence[float], width: int) -> int:
    """Where the `width` tokens in a row begin of which the trainer was least certain.

    There adapters differ. What all of them begin with, such as the brace of a JSON answer, shows
    nothing.
    """
    places = range(max(1, len(logprobs) - width + 1))
    return min(places, key=lambda place: sum(logprobs[place : place + width]))


def given_differences(probe: GoldenProbe, found: Sequence[Mapping[int, Any] | None]) -> list[float]:
    """Absolute differences in nats, token by token, of what the trainer made of the prompt.

    `found` has, for each token after the first, token id to an object with `logprob`.
    """
    differences = [
        abs(options[token].logprob - value) if options and token in options else MISSING
        for token, value, options in zip(
            probe.prompt_token_ids[1:], probe.prompt_logprobs, found, strict=False
        )
    ]
    return differences or [MISSING]


def written_differences(probe: GoldenProbe, place: int, piece: Any) -> list[float]:
    """Absolute differences in nats of what was written from `place` of the answer on, token by
    token, up to where the greedy answers part.

    `piece` has `token_ids` and, for each, `logprobs`: token id to an object with `logprob`.
    """
    differences: list[float] = []
    for expected, value, written, options in zip(
        probe.target_token_ids[place:],
        probe.logprobs[place:],
        piece.token_ids,
        piece.logprobs,
        strict=False,
    ):
        found = options.get(expected)
        differences.append(abs(found.logprob - value) if found else MISSING)
        if written != expected:
            break
    return differences or [MISSING]
