"""Gate rules: what an adapter's candidates have to show before users may see them.

The registry keeps them by adapter; an operator sets them. The job that fits a candidate neither
passes nor changes them, so that its configuration does not choose its judge.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.config import ConfigModel

_METRIC = Field(pattern=r"^[a-z][a-z0-9_.-]{0,62}/[a-z][a-z0-9_.-]{0,62}$")


class Floor(ConfigModel):
    """A metric has to reach a value, on enough rows."""

    type: Literal["floor"] = "floor"
    metric: str = _METRIC
    """As `suite/metric`."""
    min: float
    min_rows: int = Field(default=1, ge=1)
    """Fewest rows the value may rest on."""


class Gain(ConfigModel):
    """A metric has to gain over the live version, and not by luck; passes where none is live."""

    type: Literal["gain"] = "gain"
    metric: str = _METRIC
    min: float = 0.0
    """Least gain."""
    max_p_value: float = Field(default=0.05, gt=0, le=1)
    """Greatest chance that the gain is luck: one-sided sign test on paired rows."""


class NoRegression(ConfigModel):
    """A metric must not fall below the live version's by more than a margin; passes where none is
    live."""

    type: Literal["no_regression"] = "no_regression"
    metric: str = _METRIC
    max_drop: float = Field(default=0.0, ge=0)


Rule = Annotated[Floor | Gain | NoRegression, Field(discriminator="type")]


class GateRules(ConfigModel):
    """All of them have to hold; the first that does not is the reason for a refusal."""

    rules: tuple[Rule, ...] = Field(min_length=1, max_length=64)


#: For an adapter without rules of its own.
DEFAULT_RULES = GateRules(
    rules=(
        Floor(metric="understanding/accuracy", min=0.75, min_rows=200),
        Gain(metric="understanding/accuracy"),
    )
)
