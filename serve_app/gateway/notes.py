"""What the road itself writes on an envelope: use, spans, and what is withheld."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from cluster.control.protocol import RoutingTable
from cluster.governance.vault import restore
from cluster.rollout.accounts import account
from serve_app.protocol import Delta, Envelope, Generation, Span, Usage
from serve_app.steps import MASK

_WITHHELD = "[withheld: it could not be checked for personal data]"


def restored(envelope: Envelope, vault: Mapping[str, str]) -> str:
    """The answer for the client. Tokens are those of the text they add up to, or none."""
    shown = envelope.answer if envelope.shown is None else envelope.shown
    text = restore(shown, vault)
    if text != shown and envelope.generation is not None:
        envelope.generation = replace(envelope.generation, tokens=None)
    return text


def user(envelope: Envelope) -> str:
    """Who keeps to one version of two: whom the caller named, else whose key it is."""
    return envelope.user or envelope.key_id


def account_of(envelope: Envelope) -> str:
    """The account of the key that the request came with."""
    return account(envelope.tenant, envelope.key_id)


def named(envelope: Envelope, table: RoutingTable) -> str | None:
    """The adapter that the caller named, where it is served to them."""
    name = envelope.model.partition("@")[0]
    return name if table.serves(envelope, name) else None


def withhold_unchecked(envelope: Envelope) -> None:
    """No unmasked text may reach the log: neither what governance did not get to see on the way in
    nor what it did not get to see on the way out."""
    turns = sum(span.stage == MASK.stage and span.outcome == "ok" for span in envelope.spans)
    if turns < 1:
        envelope.messages = [
            {"role": message["role"], "content": _WITHHELD} for message in envelope.messages
        ]
    if turns < 2 and envelope.generation is not None:
        envelope.generation = replace(envelope.generation, text=_WITHHELD, tokens=None)


def used(envelope: Envelope, version: str, item: Delta | Generation) -> None:
    """Note what the engine has done by now."""
    if isinstance(item, Generation):
        envelope.usage = usage(envelope, version, item.prompt_tokens, item.completion_tokens)
    else:
        envelope.usage = usage(envelope, version, item.read, item.written)


def usage(envelope: Envelope, version: str, read: int, written: int) -> Usage:
    """What is counted: a prompt once, however many answers to it were asked for."""
    mine = read > 0 and envelope.counting.counts_with(envelope.trace_id)
    return Usage(version, read if mine else 0, written)


def span(envelope: Envelope, started: float) -> None:
    """Note how long generation took since `started`, by `time.perf_counter`."""
    ms = (time.perf_counter() - started) * 1000
    outcome = "ok" if envelope.generation else "refused"
    envelope.spans.append(Span("generation", round(ms, 3), 1, outcome))
