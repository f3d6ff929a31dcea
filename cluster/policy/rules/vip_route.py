"""`vip_route`: send requests of certain users to another adapter, whatever the router chose."""

from __future__ import annotations

from typing import ClassVar, Literal

from cluster.config import ConfigModel
from cluster.policy.decision import Decision, Facts, Override


class VipRoute(ConfigModel):
    """Send requests of certain users to another adapter, whatever the router chose."""

    reroutes: ClassVar[bool] = True
    type: Literal["vip_route"] = "vip_route"
    attribute: str
    equals: str
    adapter: str

    def decide(self, facts: Facts) -> Decision:
        """An override for users whose attribute has the value."""
        if facts.attributes.get(self.attribute) != self.equals:
            return Decision()
        return Decision(override=Override(self.adapter, self.type), rules=(self.type,))
