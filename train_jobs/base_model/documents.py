"""Documents of the base model's corpus: who says what, and which words carry loss.

Owns the chat markers that the tokenizer, the chat template and the corpus must agree on.
"""

from __future__ import annotations

from dataclasses import dataclass

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_TOKENS = (PAD, BOS, END, *ROLES.values())

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + m['role']) }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Turn:
    """One message and the weight of its tokens in the loss."""

    role: str
    text: str
    weight: float = 1.0


Document = tuple[Turn, ...]


def render(document: Document) -> str:
    """The text of a document, exactly as the chat template prints it."""
    return BOS + "".join(f"{ROLES[turn.role]}{turn.text.strip()}{END}" for turn in document)
