"""Governance: structured personal data is masked before the model and before the user.

The vault of masked values leaves with the envelope and stays with its request; it is never logged.
"""

from __future__ import annotations

import re
from dataclasses import replace

from cluster.privacy import MAX_PLACEHOLDER, PATTERNS, PLACEHOLDER, Vault, mask, restore
from serve_app.protocol import Envelope

_DISCOUNT = re.compile(r"\b(\d{1,3}) ?(?:%|percent)(?= ?(?:off|discount))", re.IGNORECASE)
#: Longest value a pattern of `cluster.privacy` matches in practice: an e-mail address.
_HOLD_BACK = max(96, MAX_PLACEHOLDER)
_MOST_HELD = 512
#: A word no pattern starts or continues in: complete, without digits, and not in capitals (an IBAN
#: has groups of capitals). "percent" belongs to the number before it.
_PLAIN = re.compile(r"(?<!\S)(?!(?i:percent)\b|[A-Z]+\b)[^\s\d%@\[]+\s")
#: A character that no pattern contains, nor looks at to tell a word from what is beside it: what is
#: before it is as good as complete.
_APART = re.compile(r"[^\w .%+\-@()\[\]]")


class Governance:
    """Masks the way in where no answer exists yet, and the way out once one does."""

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Mask each envelope's messages, or its answer."""
        for envelope in batch:
            if envelope.generation is None:
                self._inbound(envelope)
            else:
                self._outbound(envelope)
        return batch

    def _inbound(self, envelope: Envelope) -> None:
        vault = Vault()
        envelope.messages = [
            {key: text if key == "role" else mask(text, vault) for key, text in message.items()}
            for message in envelope.messages
        ]
        envelope.vault, envelope.masked = vault.values, vault.counts()

    def _outbound(self, envelope: Envelope) -> None:
        assert envelope.generation is not None
        leaked = Vault()
        answer = mask(envelope.generation.text, leaked)
        if leaked.values:
            # The values must not reach the log by another door.
            envelope.generation = replace(envelope.generation, text=answer)
            envelope.conflicts.append("personal data in the answer")
        capped = cap_discounts(answer, envelope.max_discount)
        if capped != answer:
            envelope.conflicts.append("discount above the cap in the answer")
        if capped != envelope.generation.text or leaked.values:
            # The tokens would say what the answer may not.
            envelope.generation = replace(envelope.generation, tokens=None)
        envelope.answer = capped


def cap_discounts(text: str, limit: int | None) -> str:
    """`text` with every offered discount above `limit` percent lowered to it."""
    if limit is None:
        return text

    def lower(match: re.Match[str]) -> str:
        number = match.group(1)
        return (
            match.group().replace(number, str(limit), 1) if int(number) > limit else match.group()
        )

    return _DISCOUNT.sub(lower, text)


class StreamGuard:
    """Masks and restores a streamed answer with a bounded hold-back.

    Text is let through up to the last word that no pattern can begin in, or the last character that
    is in none. A run of numbers is held until it ends, and at most `_MOST_HELD` characters of it.
    """

    def __init__(self, vault: dict[str, str], max_discount: int | None) -> None:
        self._vault, self._leaked = vault, Vault()
        self._max_discount = max_discount
        self._held = ""
        self.shown = 0
        """Characters of the model's own text that have been let through."""
        self.changed = False
        """Whether any of them came out otherwise than the model wrote them."""

    def push(self, text: str) -> str:
        """What may be shown after `text` arrived."""
        self._held += text
        ends = (m.end() for pattern in (_PLAIN, _APART) for m in pattern.finditer(self._held))
        edge = max(ends, default=0)
        if len(self._held) - edge > _MOST_HELD:
            edge = self._forced_edge()
        ready, self._held = self._held[:edge], self._held[edge:]
        return self._clean(ready)

    def _forced_edge(self) -> int:
        """Where to cut a long run: outside every pattern that is complete by now."""
        edge = len(self._held) - _HOLD_BACK
        spans = [m.span() for _, pattern in PATTERNS for m in pattern.finditer(self._held)]
        spans += [match.span() for match in PLACEHOLDER.finditer(self._held)]
        return min([start for start, end in spans if start < edge < end], default=edge)

    def finish(self) -> str:
        """The rest, once the answer is complete."""
        ready, self._held = self._held, ""
        return self._clean(ready)

    def _clean(self, text: str) -> str:
        masked = mask(text, self._leaked)
        clean = restore(cap_discounts(masked, self._max_discount), self._vault)
        self.shown += len(text)
        self.changed = self.changed or clean != text
        return clean
