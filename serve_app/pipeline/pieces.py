"""Pieces of a streamed answer, and the tokens that may be shown with them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from serve_app.protocol import Delta, TokenLogprob
from serve_app.stream_guard import StreamGuard


@dataclass(frozen=True)
class Piece:
    """A piece of an answer as the client may see it, and the tokens that are known with it."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


class GuardedTokens:
    """Tokens follow their text: none is shown before the guard has let its text through."""

    def __init__(self, guard: StreamGuard) -> None:
        self._guard = guard
        self._waiting: deque[TokenLogprob] = deque()
        self._shown = 0

    def add(self, delta: Delta) -> None:
        """Take in the tokens of a piece that has come."""
        self._waiting.extend(delta.tokens)

    def shown(self) -> tuple[TokenLogprob, ...]:
        """Tokens of the text let through by now; none once the guard had to change any of it."""
        found = []
        while self._waiting and not self._guard.changed:
            end = self._shown + len(self._waiting[0].text)
            if end > self._guard.shown:
                break
            self._shown = end
            found.append(self._waiting.popleft())
        return tuple(found)
