"""The price book: what tokens and other work cost. Pure values."""

from __future__ import annotations

from pydantic import Field

from cluster.config import ConfigModel


class Price(ConfigModel):
    """What a version's tokens cost, in US dollars a million."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)

    def cost(self, read: int, written: int) -> float:
        """US dollars for tokens read and written."""
        return (read * self.input + written * self.output) / 1e6


class PriceBook(ConfigModel):
    """What things cost, in US dollars."""

    default: Price = Price()
    adapters: dict[str, Price] = Field(default_factory=dict)
    """By adapter, or base model; the others cost the default."""
    training_hour: float = Field(default=0.0, ge=0)
    label: float = Field(default=0.0, ge=0)
    adapter_hour: float = Field(default=0.0, ge=0)
    """For each hour that an adapter of the tenant's is live."""

    def tokens(self, version: str) -> Price:
        """The price of a version's tokens."""
        return self.adapters.get(version.partition("@")[0], self.default)

    def most(self, read: int, written: int) -> float:
        """The most that tokens can cost, whichever target answers."""
        prices = (self.default, *self.adapters.values())
        return max(price.cost(read, written) for price in prices)
