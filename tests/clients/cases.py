"""What is asked of each client: the requests, the answers' types, and the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, Field

TIMEOUT_S = 60.0
"""Each client's own limit on a request. None of them retries."""

HELLO = "Say hello in one short sentence."
TOOL_PROMPT = "Where is order A17? Use the tool."
ORDER_PROMPT = "Extract the order: three blue lamps, please."
TEXTS = ["Where is my order?", "I want to close my account."]


class Order(BaseModel):
    """An order for one product."""

    # Bounded, so that any model that obeys the schema comes to its end.
    product: Literal["blue lamp", "red chair"] = Field(description="What is ordered")
    quantity: int = Field(description="How many of it", ge=1, le=99)


def find_order(order_id: Literal["A17", "B23"]) -> str:
    """Find where an order is."""
    return f"Order {order_id} is on its way."


FIND_ORDER = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": find_order.__doc__,
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string", "enum": ["A17", "B23"]}},
            "required": ["order_id"],
        },
    },
}


@dataclass(frozen=True)
class Target:
    """The server under check. A max_tokens of None leaves the field out of the requests."""

    base_url: str
    api_key: str
    model: str
    embedding_model: str
    max_tokens: int | None

    @property
    def limit(self) -> dict[str, Any]:
        """The limit on an answer, as keyword arguments."""
        return {} if self.max_tokens is None else {"max_tokens": self.max_tokens}


class Client(Protocol):
    """What a client must do. Each method is one request and raises if it fails."""

    def chat(self) -> str:
        """The text of an answer."""

    def stream(self) -> Sequence[str]:
        """The pieces of a streamed answer."""

    def tool_call(self) -> tuple[str, Any]:
        """The name and the arguments of a tool call that the request forced."""

    def structured_output(self) -> Order:
        """An answer held to the schema of an order."""

    def embeddings(self) -> Sequence[Sequence[float]]:
        """A vector for each of TEXTS."""
