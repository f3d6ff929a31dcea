"""Data-prep: brings every message into one normal form. It judges nothing."""

from __future__ import annotations

from cluster.text import normalise
from serve_app.protocol import Block, Envelope


class DataPrep:
    """Normalises text; a request with nothing left to answer is refused."""

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Normalise each message of each envelope."""
        for envelope in batch:
            envelope.messages = [
                {key: text if key == "role" else normalise(text) for key, text in message.items()}
                for message in envelope.messages
            ]
            if not any(m["role"] == "user" and m["content"] for m in envelope.messages):
                envelope.block = Block(
                    400, "empty_messages", "messages hold no user text to answer", "messages"
                )
        return batch
