"""The structured answer of the understanding task: one intent, named slot values.

Owns its one text form, so that training targets, served answers, labels and evaluations agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cluster.governance.vault import Vault, mask, placeholders
from cluster.text import normalise

_MAX_CHARS = 8192


@dataclass(frozen=True)
class Understanding:
    """What one customer turn means."""

    intent: str
    slots: dict[str, list[str]] = field(default_factory=dict)

    def text(self) -> str:
        """The answer as the model is trained to write it."""
        return json.dumps({"intent": self.intent, "slots": self.slots}, ensure_ascii=False)


def parse(text: str) -> Understanding | None:
    """The understanding that `text` spells, or None where it is not one."""
    if len(text) > _MAX_CHARS:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("intent"), str):
        return None
    slots = value.get("slots", {})
    if not isinstance(slots, dict) or not all(
        isinstance(items, list) and all(isinstance(item, str) for item in items)
        for items in slots.values()
    ):
        return None
    return Understanding(value["intent"], {str(name): list(items) for name, items in slots.items()})


def masked_example(text: str, answer: Understanding) -> tuple[str, Understanding]:
    """A labelled turn as serving would have seen it: normalised, values masked on both sides."""
    normal = normalise(text)
    vault = Vault(placeholders([normal]))
    clean = mask(normal, vault)
    # Longest first: a value may contain another. Slots are copies from the text, where what stands
    # around a value has already identified it.
    names = {
        original: placeholder
        for placeholder, original in sorted(vault.values.items(), key=lambda one: -len(one[1]))
    }

    def masked(value: str) -> str:
        value = normalise(value)
        for original, placeholder in names.items():
            value = value.replace(original, placeholder)
        return value

    slots = {name: [masked(item) for item in items] for name, items in answer.slots.items()}
    return clean, Understanding(answer.intent, slots)
