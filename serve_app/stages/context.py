"""Context: retrieves passages and stitches them and the conversation into one prompt."""

from __future__ import annotations

import numpy as np
from msgspec import structs

from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault, placeholders
from cluster.records.trace import Snippet
from serve_app.config import ContextConfig
from serve_app.context.index import DocumentIndex
from serve_app.protocol import Envelope


class Context:
    """Stitches within the chosen adapter's budget; what did not fit stays in the trace only."""

    def __init__(self, index: DocumentIndex, config: ContextConfig) -> None:
        self._index = index
        self._config = config

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Retrieve for the whole batch at once, then build each prompt."""
        embedded = [envelope for envelope in batch if envelope.embedding]
        if embedded and len(self._index):
            queries = np.stack([np.frombuffer(e.embedding, dtype=np.float32) for e in embedded])
            tenants = [envelope.tenant for envelope in embedded]
            bounds = (self._config.top_k, self._config.min_similarity)
            found = self._index.search(queries, tenants, *bounds)
            for envelope, snippets in zip(embedded, found, strict=True):
                envelope.snippets = snippets
                _mask_passages(envelope)
        for envelope in batch:
            envelope.prompt = self._stitch(envelope)
        return batch

    def _stitch(self, envelope: Envelope) -> list[dict[str, str]]:
        adapter = envelope.route.adapter if envelope.route else None
        budget = self._config.budget_words.get(adapter or "", self._config.default_budget_words)
        parts = [f"- {snippet.text}" for snippet in _within(envelope.snippets, budget)]
        system = ["Context:\n" + "\n".join(parts)] if parts else []
        if envelope.conflicts:
            system += [constraint.instruction() for constraint in envelope.constraints]
        if not system:
            return envelope.messages
        return [{"role": "system", "content": "\n".join(system)}, *envelope.messages]


def _mask_passages(envelope: Envelope) -> None:
    """Passages are masked as messages are; an answer that repeats a value is restored."""
    vault = Vault({*envelope.placeholders, *placeholders(s.text for s in envelope.snippets)})
    envelope.snippets = [
        structs.replace(snippet, text=mask_text(snippet.text, vault))
        for snippet in envelope.snippets
    ]
    envelope.vault = vault.values
    envelope.placeholders = (*envelope.placeholders, *vault.values)


def _within(snippets: list[Snippet], budget: int) -> list[Snippet]:
    """The best snippets whose words fit `budget`, best first."""
    chosen: list[Snippet] = []
    for snippet in snippets:
        size = len(snippet.text.split())
        if size <= budget:
            chosen.append(snippet)
            budget -= size
    return chosen
