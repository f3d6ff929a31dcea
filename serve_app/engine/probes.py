"""Compares what an engine says of a golden probe with what the trainer said. Knows no engine
library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.adapters import WEIGHTS
from cluster.records.adapter import GoldenProbe

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


@dataclass(frozen=True)
class GivenTokens:
    """Tokens of a prompt, and what the trainer made of each after the first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def cut(self, tokens: int) -> GivenTokens:
        """Its first so many tokens."""
        return GivenTokens(self.token_ids[:tokens], self.logprobs[: max(0, tokens - 1)])


def to_give(golden: Iterable[GoldenProbe]) -> list[GivenTokens]:
    """The first prompts that show enough, whole, and of further ones no more than is wanted; none
    where they all show too little."""
    found, wanted = list[GivenTokens](), _GIVEN_TOKENS
    for probe in golden:
        given = GivenTokens(probe.prompt_token_ids, probe.prompt_logprobs)
        if len(found) >= _GIVEN_PROMPTS:
            if wanted <= 0:
                break
            given = given.cut(wanted + 1)
        if given.logprobs:
            found.append(given)
            wanted -= len(given.logprobs)
    return found if wanted <= 0 else []


def least_certain(logprobs: Sequence[float], width: int) -> int:
    """Where the `width` tokens in a row begin of which the trainer was least certain.

    There adapters differ. What all of them begin with, such as the brace of a JSON answer, shows
    nothing.
    """
    places = range(max(1, len(logprobs) - width + 1))
    return min(places, key=lambda place: sum(logprobs[place : place + width]))


def given_differences(given: GivenTokens, found: Sequence[Mapping[int, Any] | None]) -> list[float]:
    """Absolute differences in nats, token by token, of what the trainer made of what was given.

    `found` has, for each token after the first, token id to an object with `logprob`.
    """
    differences = [
        abs(options[token].logprob - value) if options and token in options else MISSING
        for token, value, options in zip(given.token_ids[1:], given.logprobs, found, strict=False)
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
