"""What counts as personal data: a corpus, the cases of bug reports, and bounds of work."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.governance.findings import LOOK_BEHIND
from cluster.governance.pii import find

_CORPUS = Path(__file__).parent / "data" / "personal_data.jsonl"


def _found(text: str, context: str = "") -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in find(text, context)]


def _groups() -> dict[str, list[dict[str, object]]]:
    groups: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in _CORPUS.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        groups[case["group"]].append(case)
    return groups


@pytest.mark.parametrize("group", sorted(_groups()))
def test_the_corpus_is_found_to_the_letter(group: str) -> None:
    for case in _groups()[group]:
        expected = sorted(map(tuple, case["spans"]))  # type: ignore[call-overload]
        assert sorted(_found(str(case["text"]))) == expected, case["text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3782 822463 10005", [("CARD", "3782 822463 10005")]),
        ("3056 930902 5904", [("CARD", "3056 930902 5904")]),
        ("4111.1111.1111.1111", [("CARD", "4111.1111.1111.1111")]),
        ("12/27 4111 1111 1111 1111 12/27", [("CARD", "4111 1111 1111 1111")]),
        (
            "4111-1111-1111-1111,415-555-0132",
            [("CARD", "4111-1111-1111-1111"), ("PHONE", "415-555-0132")],
        ),
        ("+44 20 7946 0018", [("PHONE", "+44 20 7946 0018")]),
        ("0049/5235/3000", [("PHONE", "0049/5235/3000")]),
        ("07700 900123", [("PHONE", "07700 900123")]),
        ("phone: ４１５-５５５-０１３２", [("PHONE", "４１５-５５５-０１３２")]),
        ("call ٠٧٧٠٠ ٩٠٠١٢٣", [("PHONE", "٠٧٧٠٠ ٩٠٠١٢٣")]),
        ("电话4155550132谢谢", [("PHONE", "4155550132")]),
        ("user_4155550132", [("PHONE", "4155550132")]),
        ('{"phone": "4155550132", "order_id": 4155550132}', [("PHONE", "4155550132")]),
        ("69 987 88 37 office", [("PHONE", "69 987 88 37")]),
        ("Desk: 986.291.2294x751", [("PHONE", "986.291.2294x751")]),
        ("josé.muñoz@example.com", [("EMAIL", "josé.muñoz@example.com")]),
        ("mail jose\u0301@example.com now", [("EMAIL", "jose\u0301@example.com")]),
        ("邮箱是foo@example.com请回复", [("EMAIL", "foo@example.com")]),
        ("用户@例子.广告", [("EMAIL", "用户@例子.广告")]),
        ("de89370400440532013000 is mine", [("IBAN", "de89370400440532013000")]),
        ("gb29 nwbk 6016 1331 9268 19", [("IBAN", "gb29 nwbk 6016 1331 9268 19")]),
        ("[2001:db8::1]:443", [("IP", "2001:db8::1")]),
        ("https://x.example/a?phone=4155550132", [("PHONE", "4155550132")]),
        ("my ssn is 721074416", [("SSN", "721074416")]),
        ("line\n415-555-0132\nline", [("PHONE", "415-555-0132")]),
        (r"{'a': 'x\n415-555-0132'}", [("PHONE", "415-555-0132")]),
        (
            r"a\n10.1.2.3\nDE89370400440532013000",
            [("IP", "10.1.2.3"), ("IBAN", "DE89370400440532013000")],
        ),
        (r"call 4111\n30 and 1\n555-0132", [("PHONE", "555-0132")]),
        ("Call me any time: 415-555-0132", [("PHONE", "415-555-0132")]),
        ("Store (415) 555-0132", [("PHONE", "(415) 555-0132")]),
        ("your tracking, my card is 4111 1111 1111 1111", [("CARD", "4111 1111 1111 1111")]),
        (
            "[session] 203.0.113.77 and [IPv6:2001:db8::1]",
            [("IP", "203.0.113.77"), ("IP", "2001:db8::1")],
        ),
        ("user@例え.jp", [("EMAIL", "user@例え.jp")]),
        ("tanaka田中@example.com", [("EMAIL", "tanaka田中@example.com")]),
        ("https://x.example/?to=ann%40example.com", [("EMAIL", "ann%40example.com")]),
        ('{"phoneNumber": "12345678"}', [("PHONE", "12345678")]),
        ("socialSecurityNumber: 123456789", [("SSN", "123456789")]),
        ("Telefonnummer: 12345678", [("PHONE", "12345678")]),
        ("4111_1111_1111_1111", [("CARD", "4111_1111_1111_1111")]),
        ("DE89.3704.0044.0532.0130.00", [("IBAN", "DE89.3704.0044.0532.0130.00")]),
        ("IBANDE89370400440532013000", [("IBAN", "DE89370400440532013000")]),
        ("so\n10.1.2.3\n4111111111111111", [("IP", "10.1.2.3"), ("CARD", "4111111111111111")]),
    ],
)
def test_values_of_bug_reports_are_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert _found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1700000000000",
        "20240315123045",
        "order number 4512345678",
        "ISBN 978-3-16-148410-0",
        "SKU AB12 3456 7890 1234",
        "PLEASE SEND DE12 FORMS ASAP TODAY NOW OK",
        "192.168.300.1",
        "version 10.2.3.4",
        "Chrome/120.0.0.0",
        "0.4111111111111111",
        "52.520008, 13.404954",
        "550e8400-e29b-41d4-a716-446655440000",
        "https://x.example/orders/4155550132",
        "112-3456789-1234567",
        "std::vector<a::b>",
        "logo@2x.png",
        "@property",
        "x[1::2]",
        "1,234,567.89",
        "2024-03-15T10:20:30.123456Z",
        "scan_4155550132.pdf",
        "0.91 0.92 0.93",
        "temp 98.6 98.7 99.1",
        "INT_MAX = 2147483647",
        "0123456789",
        "2024031510",
        "ISBN-10: 0-306-40615-2",
        '"views": 2155550132',
        '"orderNumber": 4155550132',
        "заказ 4155550132",
        "주문번호 4155550132",
        "foo==1.2.3.4",
        "numpy>=1.26.4.0",
        "x-1.2.3.4.tar.gz",
        "Face::add2",
        "store 1600, policy 12345678, order r123456",
    ],
)
def test_numbers_that_are_not_personal_are_left_alone(text: str) -> None:
    assert find(text) == []


def test_a_name_tells_what_a_bare_value_is() -> None:
    assert _found("12345678") == []
    assert _found("12345678", "phone: ") == [("PHONE", "12345678")]
    assert _found("4155550132") == [("PHONE", "4155550132")]
    assert _found("4155550132", "order_id: ") == []


def test_nothing_in_the_context_is_reported() -> None:
    assert _found(" or 415-555-0133", "call 415-555-0132") == [("PHONE", "415-555-0133")]


@given(st.text(alphabet="0123456789 -()+.@abcnxyz:/,\"'\\\n\té中_[]", max_size=120))
def test_findings_are_in_order_apart_and_safe_inside_json(text: str) -> None:
    end = 0
    for one in find(text):
        assert end <= one.start < one.end <= len(text)
        end = one.end
        value = text[one.start : one.end]
        assert json.loads(f'"{value}"') == value


_SPACES = st.integers(min_value=LOOK_BEHIND, max_value=LOOK_BEHIND + 60)


@given(_SPACES, st.sampled_from(["order ", "phone ", "v", "http://x.example/"]))
def test_what_is_further_away_than_the_look_behind_says_nothing(size: int, label: str) -> None:
    assert find(label + "x " * size + "415-555-0132") != []


@pytest.mark.parametrize(
    "unit", ["10.1.2.3 ", "1 2 3 ", "1234 5678 ", "1", "1.", "a@", "a.b@c.d ", "ab:", "GB29 ", "+1"]
)
def test_work_grows_with_the_text_and_not_with_its_square(unit: str) -> None:
    """Counted in function calls, which no other load on the machine changes."""
    short, long = (_calls(unit * (size // len(unit))) for size in (4_000, 16_000))
    assert long < 6 * short + 2_000


def _calls(text: str) -> int:
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(find, text)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
