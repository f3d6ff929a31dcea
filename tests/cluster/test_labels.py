"""What experts write is kept, and trains, as masked as what they were shown."""

from __future__ import annotations

import json

import pytest

from cluster.records.labels import GivenLabel
from cluster.registry.labels import masked_label


def _label(answer: str, rationale: str = "") -> GivenLabel:
    return GivenLabel(
        trace_id="tr-1", adapter="care", answer=answer, rationale=rationale, annotator="ann"
    )


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("call 415-555-0132", "call [PHONE_1]"),
        ("[PHONE_1] or 415-555-0132", "[PHONE_1] or [PHONE_2]"),
        ('{"slots": {"mail": ["jos\\u00e9@example.com"]}}', '{"slots": {"mail": ["[EMAIL_1]"]}}'),
        ('{"slots": {"order_id": ["4155550132"]}}', '{"slots": {"order_id": ["4155550132"]}}'),
        ("<|assistant|>yes\u200b", "< |assistant|>yes"),
        ('{"intent": "thanks", "slots": {}}', '{"intent": "thanks", "slots": {}}'),
    ],
)
def test_an_answer_is_masked_by_its_values(answer: str, kept: str) -> None:
    assert masked_label(_label(answer)).answer == kept


def test_what_the_expert_writes_is_numbered_apart_from_the_trace() -> None:
    found = masked_label(_label("write to support@shop.example.com"), ["mail me at [EMAIL_1]"])
    assert found.answer == "write to [EMAIL_2]"


def test_a_rationale_is_masked_in_the_same_name_space() -> None:
    found = masked_label(_label("415-555-0132", "she wrote 415-555-0132, not ann@example.com"))
    assert found.answer == "[PHONE_1]"
    assert found.rationale == "she wrote [PHONE_1], not [EMAIL_1]"
    assert json.loads(found.model_dump_json())["annotator"] == "ann"
