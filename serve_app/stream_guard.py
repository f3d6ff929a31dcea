"""Guards a streamed answer: what `serve_app.stages.governance` does to a whole one, piecewise.

Holds text back only while it may still become a placeholder, what a constraint forbids or, where
the answer's own values are masked, such a value. Every bound is a number of characters, never a
time.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence

from cluster.governance.detectors.accounts import iban_across
from cluster.governance.findings import KINDS, LOOK_BEHIND
from cluster.governance.folding import fold
from cluster.governance.pii import find
from cluster.governance.vault import TooManyValues, Vault, mask, restore
from cluster.policy.decision import Constraint, enforce, settled
from serve_app.stages.governance import WITHHELD, mask_answer

#: The beginning of a placeholder at the end of what has come.
_OPEN_PLACEHOLDER = re.compile(rf"\[(?:[A-Z]{{0,{max(map(len, KINDS))}}}|[A-Z]{{2,5}}_\d{{0,4}})\Z")
#: A word no value starts or continues in: complete and without digits. "percent" belongs to the
#: number before it, "ext" to a telephone number.
_PLAIN = re.compile(r"(?<!\S)(?!(?i:percent|x|ext|ext\.|extension)\s)[^\s\d%@\[(+]+\s")
#: A character that no value contains, nor looks at to tell it from what is beside it.
_APART = re.compile(
    r"[^\w\\ .,%+\-@()\[\]:/'\u00b7\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0900-\u0eff]"
)
#: A long run is cut outside every finding and at least `_HOLD_BACK` characters before its end: the
#: longest value is an e-mail address.
_HOLD_BACK, _MOST_HELD = 320, 1024


class StreamGuard:
    """Restores, enforces constraints and, where `masks`, masks, with a bounded hold-back."""

    def __init__(
        self,
        vault: Mapping[str, str],
        constraints: Sequence[Constraint] = (),
        *,
        masks: bool = False,
        structured: bool = False,
        taken: Iterable[str] = (),
        keep: Container[str] = (),
    ) -> None:
        """`masks` is whether the answer's own values are kept from the client; `structured`,
        whether it is JSON or holds tool calls, whose values are known only once it is complete.
        `taken` are placeholders that stand for something else, `keep` values that stay."""
        self._vault, self._constraints = vault, constraints
        self._own = Vault(taken)
        self._masks, self._whole = masks, masks and structured
        self._keep = keep
        self._held = self._context = ""
        self.shown = 0
        """Characters of the model's own text that have been let through."""
        self.changed = False
        """Whether any of them came out otherwise than the model wrote them."""

    def push(self, text: str) -> str:
        """What may be shown after `text` arrived."""
        self._held += text
        if self._whole:
            return ""
        edge = len(self._held)
        if (match := _OPEN_PLACEHOLDER.search(self._held, max(0, edge - 16))) is not None:
            edge = match.start()
        if self._constraints:
            edge = min(edge, settled(self._held, self._constraints))
        if self._masks:
            edge = self._value_edge(edge)
        ready, self._held = self._held[:edge], self._held[edge:]
        return self._clean(ready)

    def finish(self) -> str:
        """The rest, once the answer is complete."""
        ready, self._held = self._held, ""
        return self._clean(ready)

    def _value_edge(self, limit: int) -> int:
        """Up to the last word that no value can begin in, or the last character that is in none;
        at most `limit`."""
        # As the detectors see it: what looks like a separator is one.
        folded = fold(self._held)
        ends = [
            match.end()
            for pattern in (_PLAIN, _APART)
            for match in pattern.finditer(folded, 0, limit)
        ]
        edge = max(ends, default=0)
        while (begun := iban_across(folded, edge)) is not None:
            edge = max((end for end in ends if end <= begun), default=0)
        if len(self._held) - edge > _MOST_HELD:
            edge = min(limit, len(self._held) - _HOLD_BACK)
            spans = ((one.start, one.end) for one in find(self._held, self._context))
            edge = min([start for start, end in spans if start < edge < end], default=edge)
        return edge

    def _clean(self, text: str) -> str:
        if not text:
            return ""
        clean = restore(enforce(self._masked(text), self._constraints), self._vault)
        self.shown += len(text)
        self.changed = self.changed or clean != text
        return clean

    def _masked(self, text: str) -> str:
        if not self._masks:
            return text
        context, self._context = self._context, (self._context + text)[-LOOK_BEHIND:]
        try:
            if self._whole:
                return mask_answer(text, self._own, self._keep, numbers=False)
            return mask(text, self._own, context)
        except TooManyValues:
            return WITHHELD
