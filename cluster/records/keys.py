"""API keys as they are requested, changed and listed; the key itself is in none of these but
`IssuedKey`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pydantic import Field, field_validator

from cluster.config import ConfigModel
from cluster.records.limits import Limits
from cluster.records.remarks import Alias
from cluster.types import TEXT, Role, checked_name

PREFIX = "hr-"


class KeyRequest(ConfigModel):
    """What a new key is to be."""

    tenant: str
    roles: tuple[Role, ...] = (Role.INFERENCE,)
    principal: str = "default"
    """Who uses it: a person or a service of the tenant."""
    alias: Alias = Field(default="", max_length=63, pattern=TEXT)
    """A name for people to tell keys by."""
    models: tuple[str, ...] = Field(default=(), max_length=1000)
    """The adapters it reaches; empty is all that the tenant reaches."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """What policy may rely on."""
    lasts_s: float | None = Field(default=None, gt=0)
    """Seconds until it expires; None is never."""
    limits: Limits = Limits()
    """Of this key, beside its tenant's."""

    _names = field_validator("tenant", "principal")(checked_name)

    @field_validator("models")
    @classmethod
    def _adapters(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_name(model) for model in models)


MODELS, END, LIMITS = "models", "end", "limits"
"""The bounds of a key, by name."""


class KeyChange(ConfigModel):
    """Changes of a key; fields that are not set stay as they are."""

    alias: Alias | None = Field(default=None, max_length=63, pattern=TEXT)
    models: tuple[str, ...] | None = Field(default=None, max_length=1000)
    """The adapters it reaches; empty is all that the tenant reaches."""
    lasts_s: float | None = Field(default=None, gt=0)
    """Seconds until it expires, from now; None, where it is named, is never."""

    @property
    def widens(self) -> bool:
        """Whether it may last longer, or reach more."""
        return self.models is not None or "lasts_s" in self.model_fields_set

    @field_validator("models")
    @classmethod
    def _adapters(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return models and tuple(checked_name(model) for model in models)


@dataclass(frozen=True)
class IssuedKey:
    """A new key. The secret cannot be read again."""

    key_id: str
    secret: str


@dataclass(frozen=True)
class KeyRecord:
    """What may be known of a key."""

    key_id: str
    alias: str
    tenant: str
    principal: str
    roles: tuple[str, ...]
    models: tuple[str, ...]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    limits: Limits
    attributes: dict[str, str]
    held: frozenset[str] = frozenset()
    """Those of its bounds that an operator set."""


def digest(secret: str) -> str:
    """The stored form of a key. Keys are 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
