"""The bodies of the admin API, with LiteLLM's field names where they fit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cluster import durations
from cluster.records.keys import KeyChange
from cluster.records.limits import Limits
from cluster.rollout.plan import RolloutPlan
from cluster.types import TEXT, Role
from serve_app.gateway.leniency import Float, Int, Metadata, WireModel, without_nulls

NEVER = "never"
NONE = "none"


class Bounds(WireModel):
    """What a key or a tenant may use. `"none"` ends a bound; `null`, as for every field, says
    nothing of it."""

    rpm_limit: Int | Literal["none"] | None = None
    tpm_limit: Int | Literal["none"] | None = None
    max_budget: Float | Literal["none"] | None = None
    """US dollars in each period."""
    budget_duration: str | None = None
    """The period: 90s, 15m, 12h, 30d; `none` is one without end."""

    def limits(self, before: Limits) -> Limits:
        """`before` with what this body names."""
        bounds = {"rpm": self.rpm_limit, "tpm": self.tpm_limit, "max_usd": self.max_budget}
        given: dict[str, Any] = {
            name: None if value == NONE else value
            for name, value in bounds.items()
            if value is not None
        }
        if (lasts := self.budget_duration) is not None:
            given["period_s"] = None if lasts == NONE else durations.seconds(lasts)
        return Limits.model_validate({**before.model_dump(), **given})


class GenerateKey(Bounds):
    """`POST /key/generate`."""

    key_alias: str = ""
    duration: str | None = None
    """Until it expires: 90s, 15m, 12h, 30d; none is never."""
    models: list[str] = Field(default_factory=list, max_length=1000)
    """The adapters it reaches; empty is all that the tenant reaches."""
    user_id: str = "default"
    """The person or service that uses it."""
    team_id: str | None = None
    """The tenant; the caller's own unless an operator asks."""
    metadata: Metadata = Field(default_factory=dict, max_length=64)
    """Attributes that policy may rely on; an operator gives them."""
    roles: list[Role] = Field(default_factory=lambda: [Role.INFERENCE], min_length=1)


class UpdateKey(Bounds):
    """`POST /key/update`: what is named changes, the rest stays."""

    key: str = Field(min_length=1, max_length=256)
    key_alias: str | None = None
    duration: str | None = None
    """Until it expires, from now; or `never`."""
    models: list[str] | None = Field(default=None, max_length=1000)

    def change(self) -> KeyChange | None:
        """What is not a bound and is to be otherwise; None where nothing is."""
        named = {"alias": self.key_alias, "models": self.models}
        given: dict[str, Any] = {name: one for name, one in named.items() if one is not None}
        if self.duration is not None:
            given["lasts_s"] = None if self.duration == NEVER else lasting(self.duration)
        return KeyChange.model_validate(given) if given else None


class DeleteKeys(WireModel):
    """`POST /key/delete`."""

    keys: list[str] = Field(min_length=1, max_length=100)


class LimitTenant(Bounds):
    """`POST /team/update`: of the limits of a whole tenant, what is named changes."""

    team_id: str = Field(min_length=1, max_length=63, pattern=TEXT)


class Reason(WireModel):
    """Why, for the audit log."""

    reason: str = Field(min_length=1, max_length=1000, pattern=TEXT)


class Appeal(WireModel):
    """`POST /v1/rollouts/appeal`."""

    version: str = Field(max_length=80)
    reason: str = Field(min_length=1, max_length=1000, pattern=TEXT)


class Revive(WireModel):
    """With which version; without, with the one that was live."""

    version: Int | None = Field(default=None, ge=1, le=999_999_999)


class Grantee(WireModel):
    """Who is let in, or no longer; `*` is every tenant."""

    tenant: str = Field(min_length=1, max_length=63, pattern=TEXT)


class StartRollout(WireModel):
    """`POST /v1/rollouts`."""

    version: str = Field(min_length=1, max_length=80)
    plan: Annotated[RolloutPlan, BeforeValidator(without_nulls)] = RolloutPlan()


def lasting(text: str | None) -> float | None:
    """Seconds, or None where nothing is said."""
    return durations.seconds(text) if text else None
