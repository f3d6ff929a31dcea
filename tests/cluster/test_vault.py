from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.governance.structured import mask_text
from cluster.governance.vault import (
    MAX_VALUES,
    PLACEHOLDER,
    TooManyValues,
    Vault,
    mask,
    placeholders,
    restore,
)

PHONE = "415-555-0132"


def test_each_kind_is_masked_and_comes_back() -> None:
    text = (
        "mail ann.lee@shop.example.com call (415) 555-0132 or 415-555-0133, card "
        "4111 1111 1111 1111, ssn 123-45-6789, from 10.0.0.1"
    )
    vault = Vault()
    masked = mask(text, vault)
    assert masked == (
        "mail [EMAIL_1] call [PHONE_1] or [PHONE_2], card [CARD_1], ssn [SSN_1], from [IP_1]"
    )
    assert restore(masked, vault.values) == text
    assert vault.counts() == {"EMAIL": 1, "PHONE": 2, "CARD": 1, "SSN": 1, "IP": 1}


def test_the_same_value_gets_the_same_placeholder() -> None:
    assert mask("8956235478 and 8956235478", Vault()) == "[PHONE_1] and [PHONE_1]"


def test_a_placeholder_in_the_text_is_not_reused() -> None:
    text = f"what does [PHONE_1] mean? call {PHONE}"
    vault = Vault(placeholders([text]))
    assert mask(text, vault) == "what does [PHONE_1] mean? call [PHONE_2]"
    assert restore("[PHONE_1] or [PHONE_2]", vault.values) == f"[PHONE_1] or {PHONE}"


def test_an_unissued_placeholder_is_left_alone() -> None:
    assert restore("see [PHONE_1]", {}) == "see [PHONE_1]"


@given(st.text(alphabet="0123456789 -()+.@abcxyz[]_PHONE", max_size=80))
def test_restoring_undoes_masking(text: str) -> None:
    vault = Vault(placeholders([text]))
    masked = mask(text, vault)
    assert restore(masked, vault.values) == text
    assert all(PLACEHOLDER.fullmatch(name) for name in vault.values)


def test_json_is_masked_by_its_strings() -> None:
    text = '{"to": "caf\\u00e9.ann@example.com", "note": "line\\n415-555-0132", "n": 7}'
    vault = Vault()
    masked = mask_text(text, vault)
    assert json.loads(masked) == {"to": "[EMAIL_1]", "note": "line\n[PHONE_1]", "n": 7}
    assert vault.values["[EMAIL_1]"] == "café.ann@example.com"


def test_white_space_and_escapes_of_what_is_not_masked_stay() -> None:
    text = '{\n  "a": "caf\\u00e9",\n  "phone": "415-555-0132"\n}'
    assert mask_text(text, Vault()) == text.replace(PHONE, "[PHONE_1]")


def test_arguments_inside_a_call_are_a_document_of_their_own() -> None:
    call = json.dumps([{"function": {"arguments": json.dumps({"phone": 4155550132, "é": "ñ"})}}])
    masked = json.loads(mask_text(call, Vault()))
    assert json.loads(masked[0]["function"]["arguments"]) == {"phone": "[PHONE_1]", "é": "ñ"}


def test_numbers_and_listed_values_stay_where_they_are_to() -> None:
    text = json.dumps({"phone": 4155550132, "desk": "415-555-0199", "other": "415-555-0100"})
    masked = json.loads(mask_text(text, Vault(), keep={"415-555-0199"}, numbers=False))
    assert masked == {"phone": 4155550132, "desk": "415-555-0199", "other": "[PHONE_1]"}


def test_an_array_of_numbers_stays_one() -> None:
    assert json.loads(mask_text("[4155550132, 7]", Vault())) == ["[PHONE_1]", 7]
    assert mask_text("[4155550132, 7]", Vault(), numbers=False) == "[4155550132, 7]"
    assert mask_text("see [1] and [2001:db8::1]", Vault()) == "see [1] and [[IP_1]]"


def test_a_key_says_what_its_value_is() -> None:
    text = json.dumps({"order_id": "4155550132", "phone": "4155550132"})
    assert json.loads(mask_text(text, Vault())) == {
        "order_id": "4155550132",
        "phone": "[PHONE_1]",
    }


_VALUES = st.sampled_from([PHONE, "ann@example.com", "4111 1111 1111 1111", "josé@example.com"])
_TEXTS = st.text(max_size=8).flatmap(
    lambda around: _VALUES.map(lambda value: f"{around} {value} {around}")
)
_DOCUMENTS: Any = st.recursive(
    _TEXTS
    | st.text(max_size=12)
    | st.integers()
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=6), inner, max_size=4)
        | inner.map(json.dumps)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6), _DOCUMENTS, max_size=4), st.booleans())
def test_masked_json_is_json_of_the_same_shape(document: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    vault = Vault(placeholders([text]))
    masked = mask_text(text, vault)
    found = json.loads(masked)
    assert isinstance(found, dict)
    assert len(found) == len(document)
    for value in ("ann@example.com", "4111 1111 1111 1111"):
        assert value not in masked
    assert isinstance(json.loads(restore(masked, vault.values)), dict)


def test_values_of_one_request_are_bounded() -> None:
    text = " ".join(f"10.{n // 250}.{n % 250}.7" for n in range(MAX_VALUES + 1))
    with pytest.raises(TooManyValues, match="different personal values"):
        mask(text, Vault())
