"""Policy: business rules that override the route or constrain the answer, before generation."""

from __future__ import annotations

import re

from cluster.governance.folding import fold
from serve_app.config import DiscountCap, PolicyConfig, VipRoute
from serve_app.protocol import Envelope, last_user_text

_PERCENT = re.compile(r"\b(\d{1,3})\s{0,3}(?:%|percent)", re.IGNORECASE)
_ASKS = re.compile(r"discount|\boff\b", re.IGNORECASE)


class Policy:
    """Applies the configured rules in order; each that applies is named in the trace."""

    def __init__(self, config: PolicyConfig) -> None:
        self._rules = config.rules

    async def __call__(self, batch: list[Envelope]) -> list[Envelope]:
        """Apply every rule to every envelope."""
        for envelope in batch:
            for rule in self._rules:
                if isinstance(rule, VipRoute):
                    self._vip(envelope, rule)
                else:
                    self._discount(envelope, rule)
        return batch

    def _vip(self, envelope: Envelope, rule: VipRoute) -> None:
        if envelope.attributes.get(rule.attribute) == rule.equals:
            envelope.override = rule.adapter
            envelope.rules.append("vip_route")

    def _discount(self, envelope: Envelope, rule: DiscountCap) -> None:
        if envelope.attributes.get(rule.unless_attribute) == rule.equals:
            return
        envelope.max_discount = rule.max_percent
        envelope.rules.append("discount_cap")
        text = fold(last_user_text(envelope.messages))
        if _ASKS.search(text):
            asked = [int(number) for number in _PERCENT.findall(text)]
            if any(number > rule.max_percent for number in asked):
                envelope.conflicts.append(f"asked for more than {rule.max_percent}% discount")
