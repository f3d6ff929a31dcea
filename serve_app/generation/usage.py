"""Token usage of a request: what the engine reports, and upper bounds where it cannot."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from cluster.records.model import Target
from cluster.records.usage import TokenUsage
from serve_app.protocol import Delta, Envelope, Generation, GenerationRequest, Sampling

#: What a chat template may put around a message, in tokens.
_AROUND = 32
#: Room for what goes around tools where the chat template knows of none: see `serve_app.tools`.
_IN_WORDS = " " * 512


def max_input_tokens(
    messages: Sequence[Mapping[str, object]], sampling: Sampling, window: int
) -> int:
    """No prompt of these messages and tools has more tokens: each takes a byte at least."""
    texts = [str(value) for message in messages for value in message.values()]
    if sum(map(len, texts)) >= window:
        return window
    # As data preparation writes them: a space in each chat marker, composed where that is longer.
    written = sum(
        len(unicodedata.normalize("NFC", text).encode("utf-8", "replace")) + _markers(text)
        for text in (*texts, sampling.tools + _IN_WORDS if sampling.tools else "")
    )
    return min(window, written + _AROUND * (len(messages) + 1))


def _markers(text: str) -> int:
    return text.count("<") + text.count("[") + text.count("\uff1c")


def note(envelope: Envelope, target: Target, item: Delta | Generation) -> None:
    """Write on the envelope what the engine has done by now."""
    envelope.usage = counted(envelope, target, item.input_tokens, item.output_tokens)


def counted(envelope: Envelope, target: Target, read: int, written: int) -> TokenUsage:
    """What is charged: a prompt once, however many answers to it were asked for."""
    mine = read > 0 and envelope.counting.counts_with(envelope.trace_id)
    return TokenUsage(target.id, read if mine else 0, written)


def bound(envelope: Envelope, request: GenerationRequest, written: int, window: int) -> TokenUsage:
    """The most that the engine may have done of a request that was abandoned."""
    read = max_input_tokens(request.messages, request.sampling, window)
    most = counted(envelope, request.target, read, min(written, window))
    return TokenUsage(most.target, most.input_tokens, most.output_tokens, exact=False)
