import pytest

from cluster.answer import Understanding, masked_example, parse


def test_text_and_parse_are_inverse() -> None:
    answer = Understanding("checkstock", {"item": ["rain boots", "hat"]})
    assert parse(answer.text()) == answer


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[]", '{"intent": 3}', '{"intent": "a", "slots": {"x": "y"}}', "[" * 5000],
)
def test_anything_else_is_no_answer(text: str) -> None:
    assert parse(text) is None


def test_a_labelled_turn_is_masked_on_both_sides() -> None:
    text, answer = masked_example(
        "my  number is 8956235478", Understanding("info", {"phone": ["8956235478"]})
    )
    assert text == "my  number is [PHONE_1]"
    assert answer.slots == {"phone": ["[PHONE_1]"]}
