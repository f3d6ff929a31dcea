"""What a tenant or a key may use. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from cluster.config import ConfigModel

#: Whole numbers that a float tells apart, and a database takes.
_MOST = 1 << 53


class Limits(ConfigModel):
    """Bounds on use; None is no bound."""

    rpm: int | None = Field(default=None, ge=1, le=_MOST)
    """Requests in any minute."""
    tpm: int | None = Field(default=None, ge=1, le=_MOST)
    """Tokens, read and written, in any minute."""
    max_usd: float | None = Field(default=None, ge=0)
    """Money for tokens, at the price book's prices, in each period."""
    period_s: float | None = Field(default=None, gt=0)
    """How long a period lasts, from when the limits were set; None is one without end."""

    @property
    def bounded(self) -> bool:
        """Whether there is any bound."""
        return not (self.rpm is None and self.tpm is None and self.max_usd is None)


def within(new: Limits, old: Limits) -> bool:
    """Whether `new` lets through nothing that `old` does not."""
    for name in ("rpm", "tpm", "max_usd"):
        before, after = getattr(old, name), getattr(new, name)
        if before is not None and (after is None or after > before):
            return False
    # The same money in a shorter period is more.
    return old.max_usd is None or new.period_s == old.period_s


def tenant_scope(tenant: str) -> str:
    """The account of everything that a tenant's keys use."""
    return f"tenant:{tenant}"


def key_scope(key_id: str) -> str:
    """The account of one key."""
    return f"key:{key_id}"


@dataclass(frozen=True)
class Seed:
    """What an account had used before the ledger was opened, as the meter tells."""

    recent: tuple[tuple[float, int, int], ...] = ()
    """Of the last minute: when, requests, tokens."""
    usd: float = 0.0
    """In the present period."""
