"""The configuration of a rollout: its phases and the guardrails that end it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.config import ConfigModel

Outcome = Literal["rating", "resolved", "escalated", "disliked"]
"""What an A/B test compares; of the last two, less is better."""


class Trial(ConfigModel):
    """An A/B test: users are split, and what became of their answers decides."""

    outcome: Outcome
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """Of the verdict, at every moment somebody looks."""
    min_gain: float = Field(default=0.0, ge=0)
    """By how much the candidate has to be better: a share, or points of rating."""
    undecided: Literal["promote", "roll back"] = "roll back"
    """What follows where the time is over and neither is shown to be better."""


class Phase(ConfigModel):
    """A share of the traffic, and what has to be seen before the next."""

    percent: float = Field(ge=0, le=100)
    """Share of the users that the candidate answers, or of the requests a shadow is tried on."""
    shadow: bool = False
    """Whether its answers are thrown away, so that no user sees them."""
    min_requests: int = Field(default=200, ge=0)
    """Requests the candidate must have had in this phase."""
    min_seconds: float = Field(default=60.0, ge=0)
    trial: Trial | None = None
    """Stay in this phase until its A/B test has a verdict; `percent` is the candidate's weight."""

    @model_validator(mode="after")
    def _is_seen(self) -> Phase:
        if self.trial is not None and (self.shadow or not 0 < self.percent < 100):
            raise ValueError("an A/B test needs users on both sides: no shadow, 0 < percent < 100")
        return self


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
    """A phase that has not seen enough after so long ends the rollout, or its A/B test."""
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
