"""The kinds of rules: one file each, and one row in `Rule`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.config import ConfigModel
from cluster.policy.decision import Decision, Facts
from cluster.policy.rules.discount_cap import DiscountCap
from cluster.policy.rules.vip_route import VipRoute

Rule = Annotated[VipRoute | DiscountCap, Field(discriminator="type")]


class PolicyConfig(ConfigModel):
    """Business rules in the order they apply."""

    rules: tuple[Rule, ...] = ()

    @property
    def reroutes(self) -> bool:
        """Whether another adapter may answer than the one that a caller names."""
        return any(rule.reroutes for rule in self.rules)

    def decide(self, facts: Facts) -> Decision:
        """What all rules together decide. Pure."""
        decision = Decision()
        for rule in self.rules:
            decision = decision.merged(rule.decide(facts))
        return decision
