from hypothesis import given
from hypothesis import strategies as st

from cluster.privacy import PLACEHOLDER, Vault, mask, restore


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
    vault = Vault()
    assert mask("8956235478 and 8956235478", vault) == "[PHONE_1] and [PHONE_1]"


def test_short_numbers_and_order_codes_stay() -> None:
    for text in ("order r123456", "4523", "policy 12345678", "it costs $1200", "store 1600"):
        assert mask(text, Vault()) == text


def test_a_placeholder_nobody_issued_is_left_alone() -> None:
    assert restore("see [PHONE_1]", {}) == "see [PHONE_1]"


@given(st.text(alphabet="0123456789 -()+.@abcxyz", max_size=80))
def test_masking_is_stable_and_restoring_undoes_it(text: str) -> None:
    vault = Vault()
    masked = mask(text, vault)
    assert restore(masked, vault.values) == text
    assert all(PLACEHOLDER.fullmatch(name) for name in vault.values)
