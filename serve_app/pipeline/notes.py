"""What the pipeline itself writes on an envelope: the generation span, and what is withheld."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from cluster.governance.vault import restore
from cluster.records.trace import Span
from serve_app.pipeline.steps import MASK
from serve_app.protocol import Envelope

_WITHHELD = "[withheld: it could not be checked for personal data]"


def restored(envelope: Envelope, vault: Mapping[str, str]) -> str:
    """The answer for the client. Tokens are those of the text they add up to, or none."""
    shown = envelope.answer if envelope.shown is None else envelope.shown
    text = restore(shown, vault)
    if text != shown and envelope.generation is not None:
        envelope.generation = replace(envelope.generation, tokens=None)
    return text


def withhold_unchecked(envelope: Envelope) -> None:
    """No unmasked text may reach the log: neither what governance did not get to see on the way in
    nor what it did not get to see on the way out."""
    turns = sum(span.name == MASK.stage and span.outcome == "ok" for span in envelope.spans)
    if turns < 1:
        envelope.messages = [
            {"role": message["role"], "content": _WITHHELD} for message in envelope.messages
        ]
    if turns < 2 and envelope.generation is not None:
        envelope.generation = replace(envelope.generation, text=_WITHHELD, tokens=None)


def span(envelope: Envelope, started: float) -> None:
    """Note how long generation took since `started`, by `time.perf_counter`."""
    ms = (time.perf_counter() - started) * 1000
    outcome = "ok" if envelope.generation else "refused"
    start = (time.time() - envelope.received_at) * 1000 - ms
    envelope.spans.append(Span("generation", round(ms, 3), round(start, 3), 1, outcome))
