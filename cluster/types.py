"""Domain values every package speaks in: ids, adapter versions, principals, states.

Standard library only, so that configuration and `--help` stay light.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

#: In a grant: every tenant.
EVERYONE = "*"

#: A pattern of what a database takes as a text: PostgreSQL's has no NUL.
TEXT = r"^[^\x00]*$"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def checked_name(name: str) -> str:
    """`name` if it may name an adapter or a dataset: lower case, digits, `_`, `-`, at most 63.

    Raises:
        ValueError: it may not; names become paths, so nothing else is let through.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid name: use 1-63 lower-case letters, digits, '-' or '_', "
            "starting with a letter"
        )
    return name


@dataclass(frozen=True, order=True)
class AdapterVersion:
    """One immutable version of an adapter, printed `insurance@2`."""

    name: str
    version: int

    def __post_init__(self) -> None:
        checked_name(self.name)
        if self.version < 1:
            raise ValueError(f"adapter version {self.version} must be 1 or more")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> AdapterVersion:
        """The version that `text` names, such as `insurance@2`.

        Raises:
            ValueError: `text` is not `name@number`.
        """
        name, mark, number = text.partition("@")
        if not mark or not number.isdecimal() or len(number) > 9:
            raise ValueError(f"{text!r} is not an adapter version: write name@number")
        return cls(name, int(number))


class VersionState(StrEnum):
    """Where a version stands on its way to the users."""

    CANDIDATE = "candidate"
    REJECTED = "rejected"
    PASSED = "passed"
    LIVE = "live"
    RETIRED = "retired"


class Role(StrEnum):
    """What an API key may do."""

    INFERENCE = "inference"
    LABEL = "label"
    ADMIN = "admin"
    """Manages its own tenant's keys, adapters and bills."""
    OPERATOR = "operator"
    """Manages every tenant's."""


@dataclass(frozen=True)
class Principal:
    """Who sent a request, as its API key tells."""

    key_id: str
    tenant: str
    roles: frozenset[Role]
    attributes: dict[str, str] = field(default_factory=dict)
    name: str = ""
    models: frozenset[str] = frozenset()
    """The adapters the key reaches; empty is all that the tenant reaches."""
    expires_at: float | None = None
    limited: tuple[str, ...] = ()
    """The accounts that bound what it may use; empty is no bound."""

    def may(self, role: Role) -> bool:
        """Whether this principal holds `role`; an admin holds what its tenant's people hold, an
        operator every role."""
        if Role.OPERATOR in self.roles:
            return True
        return role in self.roles or (Role.ADMIN in self.roles and role is not Role.OPERATOR)
