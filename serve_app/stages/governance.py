"""Governance: personal data is masked before the model sees it and before the log does.

The vault of masked values leaves with the envelope and stays with its request; it is never logged.
Values that the answer brings of its own are masked in the log always, and for the client as
configured. They are numbered apart from the request's, which alone are restored.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import partial

from cluster.governance.findings import OutOfTime, Tick, unlimited
from cluster.governance.structured import mask_text
from cluster.governance.vault import TooManyValues, Vault, mask, placeholders
from cluster.policy.decision import enforce
from cluster.records.trace import Refusal
from serve_app.config import GovernanceConfig
from serve_app.long_texts import Busy, LongTexts, is_long, refusal
from serve_app.protocol import Envelope
from serve_app.tools import readable, segments

WITHHELD = "[withheld: too many personal values]"


class Governance:
    """Masks the way in where no answer exists yet, and the way out once one does."""

    def __init__(self, config: GovernanceConfig | None = None) -> None:
        config = config or GovernanceConfig()
        self._shows = config.answer_values == "show"
        self._long = LongTexts(config.limit_s)

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Mask each envelope's texts, or its answer."""
        for envelope in batch:
            if envelope.generation is not None:
                await self._out(envelope)
            else:
                await self._in(envelope)
        return batch

    async def _in(self, envelope: Envelope) -> None:
        try:
            if is_long(envelope.texts()):
                await self._long.run(envelope.tenant, partial(self._inbound, envelope))
            else:
                self._inbound(envelope)
        except TooManyValues as error:
            _refuse(envelope, Refusal(400, "too_many_values", str(error), "messages"))
        except (OutOfTime, Busy) as error:
            _refuse(envelope, refusal(error))

    async def _out(self, envelope: Envelope) -> None:
        assert envelope.generation is not None
        if not is_long([envelope.generation.text]):
            self._outbound(envelope)
            return
        try:
            await self._long.run(envelope.tenant, partial(self._outbound, envelope))
        except (OutOfTime, Busy):
            envelope.answer = WITHHELD
            envelope.shown = None
            envelope.generation = replace(envelope.generation, text=WITHHELD, tokens=None)

    def _inbound(self, envelope: Envelope, tick: Tick = unlimited) -> None:
        texts = [text for message in envelope.messages for text in message.values()]
        taken = placeholders([*texts, *envelope.metadata.values(), envelope.tools or ""])
        taken.update(envelope.placeholders)
        vault = Vault(taken, tick)
        envelope.messages = [
            {key: text if key == "role" else mask_text(text, vault) for key, text in one.items()}
            for one in envelope.messages
        ]
        envelope.metadata = {
            mask(key, vault): mask_text(text, vault, name=key)
            for key, text in envelope.metadata.items()
        }
        if envelope.tools is not None:
            envelope.tools = readable(envelope.tools, lambda text: mask(text, vault))
        envelope.vault, envelope.masked = vault.values, vault.counts()
        envelope.placeholders = tuple(sorted(taken.union(vault.values)))

    def _outbound(self, envelope: Envelope, tick: Tick = unlimited) -> None:
        assert envelope.generation is not None
        text, keep = envelope.generation.text, envelope.listed
        own = Vault({*envelope.placeholders, *placeholders([text])}, tick)
        try:
            recorded = mask_answer(text, own, keep)
        except TooManyValues:
            recorded = WITHHELD
        if own.values:
            envelope.conflicts.append("personal data in the answer")
        envelope.answer = recorded
        for constraint in envelope.constraints:
            before, envelope.answer = envelope.answer, constraint.enforce(envelope.answer)
            if envelope.answer != before:
                envelope.conflicts.append(constraint.violation)
        shown = text
        if not self._shows:
            # As `StreamGuard` does it, which cannot know what the model will write. Under a schema
            # numbers stay numbers: the client asked for them.
            shown = _masked_for_client(envelope, text, tick)
        shown = enforce(shown, envelope.constraints)
        envelope.shown = None if shown == envelope.answer else shown
        if recorded != text:
            envelope.generation = replace(envelope.generation, text=recorded)
        if shown != text:
            # The tokens would say what the answer may not.
            envelope.generation = replace(envelope.generation, tokens=None)


def _masked_for_client(envelope: Envelope, text: str, tick: Tick) -> str:
    own = Vault(envelope.placeholders, tick)
    try:
        if envelope.structured:
            return mask_answer(text, own, envelope.listed, numbers=False)
        return mask(text, own)
    except TooManyValues:
        return WITHHELD


def _refuse(envelope: Envelope, refusal: Refusal) -> None:
    """Stop a request that was masked in part only: nothing of it may reach the log."""
    envelope.messages = [{"role": one["role"], "content": WITHHELD} for one in envelope.messages]
    envelope.metadata, envelope.tools = {}, None
    envelope.refusal = refusal


def mask_answer(text: str, vault: Vault, keep: Container[str] = (), *, numbers: bool = True) -> str:
    """A model's answer masked: its words as text, JSON and tool calls by their values.

    See `cluster.governance.structured.mask_text` for `keep` and `numbers`.
    """
    parts = (mask_text(one, vault, keep=keep, numbers=numbers) for one in segments(text))
    return "".join(parts)
