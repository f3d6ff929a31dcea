"""A guarded stream says what the guarded whole says, however it is split."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.governance.vault import Vault, mask, restore
from cluster.policy.rules.discount_cap import MaxDiscount
from serve_app.stream_guard import StreamGuard

CAP = MaxDiscount(20)
VAULT = {"[PHONE_1]": "415-555-0132"}
TEXT = (
    "call [PHONE_1] or [CARD_9], mail ann.lee@shop.example.com, card 4111 1111 1111 1111, 35% "
    "off, plain words that go on for a while so that the hold-back has to let some through, end"
)


def _streamed(guard: StreamGuard, text: str, size: int) -> str:
    shown = "".join(guard.push(text[i : i + size]) for i in range(0, len(text), size))
    return shown + guard.finish()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_values_of_the_answer_are_masked_where_that_is_asked(size: int) -> None:
    guard = StreamGuard(VAULT, (CAP,), masks=True, taken=["[CARD_9]", "[PHONE_1]"])
    assert _streamed(guard, TEXT, size) == (
        "call 415-555-0132 or [CARD_9], mail [EMAIL_1], card [CARD_1], 20% "
        "off, plain words that go on for a while so that the hold-back has to let some through, end"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_values_of_the_answer_are_shown_by_default(size: int) -> None:
    expected = TEXT.replace("[PHONE_1]", "415-555-0132").replace("35%", "20%")
    assert _streamed(StreamGuard(VAULT, (CAP,)), TEXT, size) == expected


def test_nothing_is_held_that_cannot_become_a_placeholder() -> None:
    guard = StreamGuard(VAULT, ())
    pieces = ["my ", "number ", "4155", "55 [x", "] [PHO", "NE_1", "]!"]
    assert [guard.push(piece) for piece in pieces] == [
        *("my ", "number ", "4155", "55 [x", "] ", "", "415-555-0132!")
    ]


@pytest.mark.parametrize("masks", [False, True])
def test_a_stream_does_not_buffer_everything(masks: bool) -> None:
    guard = StreamGuard({}, (CAP,), masks=masks)
    assert len("".join(guard.push(word + " ") for word in ["word"] * 200)) > 700


@pytest.mark.parametrize("unit", ["1234 ", "漢字", "a1-", "[[", "GB29 "])
def test_what_is_held_is_bounded(unit: str) -> None:
    guard = StreamGuard({}, (CAP,), masks=True)
    shown = 0
    for count in range(1, 2000):
        shown += len(guard.push(unit))
        assert count * len(unit) - shown < 1500


def test_a_masked_stream_shows_the_begin_of_an_object_at_once() -> None:
    guard = StreamGuard({}, (), masks=True)
    pieces = ['{"', "intent", '": "', "store", "_hours", '", "', "slots", '": {', "}}"]
    assert "".join(guard.push(piece) for piece in pieces[:3]) == '{"intent": "'


@pytest.mark.parametrize("after", ["[PHONE_1]", " and more", ", then", "", " [x]"])
def test_no_group_of_an_account_number_is_shown_before_the_others(after: str) -> None:
    for number in ("GB29 NWBK 6016 1331 9268 19", "gb29 nwbk 6016 1331 9268 19"):
        text = f"mine: {number} {after}"
        shown = _streamed(StreamGuard({}, (), masks=True), text, 1)
        assert shown == f"mine: [IBAN_1] {after}"


def test_structured_answers_are_masked_by_their_values() -> None:
    answer = json.dumps({"phone": 4155550177, "mail": "caf\u00e9@example.com", "to": "[PHONE_1]"})
    guard = StreamGuard(VAULT, (), masks=True, structured=True)
    found = json.loads(_streamed(guard, answer, 3))
    assert found == {"phone": 4155550177, "mail": "[EMAIL_1]", "to": "415-555-0132"}


_PARTS = st.lists(
    st.sampled_from(
        [
            *("call ", "[PHONE_1]", " 4111 1111", " 1111 1111", " a.b", "@shop.example.com "),
            *("30%", " off ", "GB29 NWBK 6016", " 1331 9268 19 ", "gb29 nwbk ", "word ", "12 "),
            *("[", '{"n": "', '415-555-0132"', "é", "(415) ", "555-0132,", "\n", "+44 20 7946 "),
            *("0018", " ext. ", "22 ", "order ", "phone: ", "10.0.0.", "1 ", "2001:db8:", ":1 "),
            *("电话", "用户@例子.广告", " office ", "https://x.example/", "v", "%", "percent "),
        ]
    ),
    max_size=40,
)
_SIZE = st.integers(min_value=1, max_value=9)


@given(_PARTS, _SIZE)
def test_no_split_of_a_stream_lets_a_value_through(parts: list[str], size: int) -> None:
    text = "".join(parts)
    shown = _streamed(StreamGuard({}, (CAP,), masks=True), text, size)
    assert shown == CAP.enforce(mask(text, Vault()))


@given(_PARTS | st.text('A1a0%@.-+()[] ,"\n_é:/', max_size=60).map(lambda text: [text]), _SIZE)
def test_every_stream_restores_and_caps_as_its_whole(parts: list[str], size: int) -> None:
    text = "".join(parts)
    assert _streamed(StreamGuard(VAULT, (CAP,)), text, size) == restore(CAP.enforce(text), VAULT)


@given(st.text('A1a0%@.-+()[] ,"\n_é:/xt', max_size=80), _SIZE)
def test_every_stream_is_masked_as_its_whole(text: str, size: int) -> None:
    shown = _streamed(StreamGuard({}, (CAP,), masks=True), text, size)
    assert shown == CAP.enforce(mask(text, Vault()))


def test_a_masked_stream_of_too_many_values_withholds_the_rest() -> None:
    text = " ".join(f"10.{n // 250}.{n % 250}.7 and" for n in range(1100))
    shown = _streamed(StreamGuard({}, (), masks=True), text, 9)
    assert "10.4.99.7" not in shown
    assert "[withheld: too many personal values]" in shown
