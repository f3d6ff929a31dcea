"""Log-probabilities by token, aligned with the text they are of. Knows no engine library.

An engine reports tokens that are not in its text: the one that ends an answer, those of a stop
string, special tokens. What is reported here adds up to the text, character by character.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from serve_app.protocol import TokenLogprob


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
                if token.text.startswith(self._text):
                    break  # the rest of it is held back by the engine
                token = replace(token, text="")  # a special token, which is not in the text
            self._waiting.popleft()
            self._text = self._text[len(token.text) :]
            found.append(token)
        return found

    def finish(self) -> list[TokenLogprob]:
        """The last tokens of a complete answer: one that is cut by a stop string, cut as well."""
        rest, self._text = self._text, ""
        if not rest:
            return []
        token = self._waiting[0] if self._waiting else None
        return [] if token is None else [replace(token, text=rest)]
