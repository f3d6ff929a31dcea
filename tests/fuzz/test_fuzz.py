"""A short run of every fuzz target, and what long runs found."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault
from tests.fuzz.api import fuzz
from tests.fuzz.targets import TARGETS, timed

#: Kept as they were found: target, and the value that broke its promise.
CORPUS: list[tuple[str, Any]] = [
    # An array that begins with a literal was masked as text, which cut the escape.
    ("masking", '[null, "\\ud800ann@shop.example.com"]'),
    ("masking", '[true, "\\u00e9ann@shop.example.com"]'),
    ("masking", '{"a": [false, ["\\n415-555-0132"]]}'),
    # A removed control character had parted two runs of combining marks.
    ("normaliser", "\u0327" * 39 + "\u202a" + "\u0327" * 39),
    ("normaliser", "\u0958" + "\u093c" * 30),
    ("stream-guard", ("415-555-0132\u00b7415-555-0132<|", [13])),
]


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_short_run(name: str) -> None:
    strategy, target = TARGETS[name]

    @settings(max_examples=150)
    @given(strategy)
    def one(value: Any) -> None:
        timed(target, value)

    one()


@pytest.mark.parametrize(("name", "value"), CORPUS)
def test_what_was_found_stays_mended(name: str, value: Any) -> None:
    TARGETS[name][1](value)


@given(st.sampled_from(["null", "true", "false", "NaN", "Infinity", "1", '"a"', "{}", "[]"]))
def test_an_array_is_masked_by_its_values_whatever_it_begins_with(first: str) -> None:
    text = f'[ {first}, "\\u00e9ann@shop.example.com"]'
    assert mask_text(text, Vault()) == f'[ {first}, "[EMAIL_1]"]'


def test_the_gateway_answers_whatever_it_is_asked() -> None:
    seen = fuzz(cases=600, number=1)
    assert seen["200"] > 50
    assert seen["400"] > 50
