"""The configuration of a rollout: its phases and the guardrails that end it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.config import ConfigModel


class Phase(ConfigModel):
    """A share of the traffic, and what has to be seen before the next."""

    percent: float = Field(ge=0, le=100)
    """Share of the users that the candidate answers, or of the requests a shadow is tried on."""
    shadow: bool = False
    """Whether its answers are thrown away, so that no user sees them."""
    min_requests: int = Field(default=200, ge=0)
    """Requests the candidate must have had in this phase."""
    min_seconds: float = Field(default=60.0, ge=0)


class Guardrails(ConfigModel):
    """How much worse than the live version a candidate may be."""

    error_rate: float = Field(default=0.01, ge=0)
    """Added share of failed requests."""
    latency_ratio: float = Field(default=1.25, ge=1)
    """Mean latency over the live version's."""
    confidence: float = Field(default=0.05, ge=0)
    """Lost mean confidence."""
    disliked: float = Field(default=0.05, ge=0)
    """Added share of disliked answers."""
    escalated: float = Field(default=0.05, ge=0)
    """Added share of escalated conversations."""
    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Chance that a candidate as good as allowed is rolled back, all guardrails together."""


_DEFAULT = (
    Phase(percent=10, shadow=True, min_requests=50, min_seconds=10),
    Phase(percent=5),
    Phase(percent=25),
    Phase(percent=50),
)


class RolloutPlan(ConfigModel):
    """How a candidate comes to the users."""

    phases: tuple[Phase, ...] = Field(default=_DEFAULT, min_length=1, max_length=20)
    guardrails: Guardrails = Guardrails()
    give_up_s: float = Field(default=86_400.0, gt=0)
    """A phase that has not seen enough after so long ends the rollout."""
    at_end: Literal["promote", "wait"] = "promote"
    """After the last phase: promote, or wait for a person to."""

    @model_validator(mode="after")
    def _rises(self) -> RolloutPlan:
        shown = [phase.percent for phase in self.phases if not phase.shadow]
        if shown != sorted(shown):
            raise ValueError("the percentages of the phases must rise: a user must not flip back")
        if [phase.shadow for phase in self.phases] != sorted(
            (phase.shadow for phase in self.phases), reverse=True
        ):
            raise ValueError("shadow phases come before the others")
        return self
