"""Log-probabilities by token, aligned with the text they are of. Knows no engine library.

An engine reports tokens that are not in its text: the one that ends an answer, those of a stop
string, special tokens. What is reported here adds up to the text, character by character.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from serve_app.protocol import TokenLogprob

#: Characters that one token may be spelled with in the text, other than by itself.
_NEAR = 16


class TokenAligner:
    """Claims the text of an answer token by token, as both come."""

    def __init__(self) -> None:
        self._text = ""
        """What no token has claimed yet."""
        self._waiting = deque[TokenLogprob]()

    def push(self, text: str, tokens: Iterable[TokenLogprob]) -> list[TokenLogprob]:
        """The tokens whose text has come by now; the others wait for theirs."""
        self._text += text
        self._waiting.extend(tokens)
        found = list[TokenLogprob]()
        while self._waiting and self._text:
            token = self._waiting[0]
            if not self._text.startswith(token.text):
                # The rest of it is held back by the engine, or what comes next will tell.
                if token.text.startswith(self._text) or len(self._waiting) == 1:
                    break
                token = replace(token, text=self._skipped())
            self._waiting.popleft()
            self._text = self._text[len(token.text) :]
            found.append(token)
        return found

    def _skipped(self) -> str:
        """What the first waiting token has of the text, though it is spelled otherwise there: all
        up to the next one. A special token has none."""
        after = next((one.text for one in list(self._waiting)[1:] if one.text), "")
        place = self._text.find(after, 0, _NEAR + len(after)) if after else -1
        return self._text[:place] if place > 0 else ""

    def finish(self) -> list[TokenLogprob]:
        """The last tokens of a complete answer: one that is cut by a stop string, cut as well."""
        rest, self._text = self._text, ""
        if not rest:
            return []
        token = self._waiting[0] if self._waiting else None
        return [] if token is None else [replace(token, text=rest)]
