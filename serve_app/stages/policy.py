"""Policy: states the facts of a request, and writes the rules' decision on it."""

from __future__ import annotations

from cluster.policy.decision import Facts
from cluster.policy.rules import PolicyConfig
from serve_app.protocol import Envelope, last_user_text


class Policy:
    """Applies the configured rules; what they decide is carried out by the steps after it."""

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Decide about each envelope."""
        for envelope in batch:
            facts = Facts(envelope.attributes, last_user_text(envelope.messages))
            decision = self._config.decide(facts)
            envelope.override = decision.override
            envelope.constraints = decision.constraints
            envelope.rules.extend(decision.rules)
            envelope.conflicts.extend(decision.conflicts)
        return batch
