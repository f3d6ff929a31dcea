"""Token usage: of one request, and of a range of the audit log as the meter keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct


class TokenUsage(Struct, frozen=True):
    """Tokens that one request has cost: what is metered and billed."""

    target: str
    """Label of the adapter version, or name of the base model, that the tokens are charged to."""
    input_tokens: int
    output_tokens: int
    exact: bool = True
    """False where the request was abandoned and the counts are upper bounds."""


@dataclass(frozen=True)
class MeteredUsage:
    """Usage of one key and one target between entries `first` and `after` (exclusive) of a
    writer's chain.

    `(writer, first, after)` is the idempotency key of at-least-once delivery.
    """

    writer: str
    first: int
    after: int
    at: float
    """When the first entry was recorded, Unix time in seconds."""
    tenant: str
    key_id: str
    version: str
    requests: int
    cached: int
    """Requests answered from the response cache; their tokens were not computed."""
    input_tokens: int
    output_tokens: int
