"""What is fuzzed: each target takes unchecked text and must keep its promise.

A promise that is broken raises `AssertionError`; any other exception but the target's own refusal
is a finding as well.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from cluster.errors import UserError
from cluster.governance.structured import mask_text
from cluster.governance.vault import Vault, placeholders, restore
from cluster.policy.rules.discount_cap import MaxDiscount
from cluster.text import normalise
from serve_app.gateway.messages import Offer
from serve_app.schemas import check_schema, enforced
from serve_app.stages.governance import mask_answer
from serve_app.stream_guard import StreamGuard
from serve_app.tools import OPEN, segments

#: A thousand times what such a text takes: what takes longer is not linear in it.
_SLOW_S = 2.0

_PIECES = st.sampled_from(
    [
        *("<|", "|>", "<|user|>", "\uff1c|", "[", "]", "[PHONE_1]", "[EMAIL_12]", "\\u005b"),
        *("415-555-0132", "+44 20 7946 0018", "ann@shop.example.com", "4111 1111 1111 1111"),
        *("10.0.0.7", "2001:db8::1", "DE89 3704 0044 0532 0130 00", "078-05-1120", "phone: "),
        *("{", "}", '"', "\\", "\\n", ",", ":", "null", "1e9", "-0", "<tool_call>", "</tool_call>"),
        *("a\u0301", "\u0327" * 40, "\u200d", "\u202e", "\u2028", "\r\n", "\t", "\ud800", "\x00"),
        *("90% off", "30 percent discount", "٤١٥-٥٥٥-٠١٣٢", "👩‍👩‍👧‍👦"),
    ]
)
TEXTS = st.lists(_PIECES | st.text(max_size=12), max_size=24).map("".join)
_CUTS = st.lists(st.integers(0, 400), max_size=12)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
_KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "items", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "enum"),
        *("pattern", "minLength", "maxLength", "required", "additionalProperties", "const"),
        *("minItems", "maxItems", "format", "minimum", "if", "then", "prefixItems"),
    ]
)
_WORTH: st.SearchStrategy[Any] = st.sampled_from(
    [
        *("object", "string", "array", "#", "#/$defs/a", "#/properties/a", ["a"], ["string", 1]),
        *("^a+$", "(a{1,50}){1,50}", "(?=a)b", "[a-z]{1,9999}", "(((((a*)*)*)*)*)", "\\", "["),
        *(0, -1, 1e308, True, None, {}, []),
    ]
)
SCHEMAS = st.recursive(
    st.dictionaries(_KEYWORDS, _WORTH, max_size=4),
    lambda inner: st.dictionaries(
        _KEYWORDS, inner | st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=12,
)


def normaliser(text: str) -> None:
    """Normal form is stable, keeps no control token, and composes."""
    once = normalise(text)
    assert normalise(once) == once
    assert "<|user|>" not in once
    assert unicodedata.normalize("NFC", once) == once or "\u200d" in once or "\ud800" in once


def masking(text: str) -> None:
    """What is masked comes back letter for letter, and JSON stays JSON."""
    vault = Vault(placeholders([text]))
    try:
        masked = mask_text(text, vault)
    except UserError:
        return
    assert restore(masked, vault.values) == text or "\\" in text or "{" in text or "[" in text
    try:
        before: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(before, dict | list):
        assert type(json.loads(masked)) is type(before)


def stream_guard(drawn: tuple[str, list[int]]) -> None:
    """A stream shows what the whole answer would have shown, however it is cut."""
    text, cuts = drawn
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]
    guard = StreamGuard({}, (MaxDiscount(20),), masks=True, structured=False, taken=(), keep=())
    shown = "".join([*(guard.push(piece) for piece in pieces), guard.finish()])
    whole = StreamGuard({}, (MaxDiscount(20),), masks=True, structured=False, taken=(), keep=())
    assert shown == whole.push(text) + whole.finish()


def tool_calls(text: str) -> None:
    """A model's text is words and calls, and masking it leaves both as they are."""
    assert "".join(segments(text)) == text
    mask_answer(text, Vault(placeholders([text])))
    offer = Offer(tools=[{"type": "function", "function": {"name": "f"}}], choice="auto")
    words, calls = offer.read(text)
    assert OPEN in text or not calls
    assert len(words) <= len(text)


def schemas(schema: dict[str, Any]) -> None:
    """A schema is let through or refused by a `ValueError`, and quickly."""
    try:
        check_schema(schema)
    except ValueError:
        return
    json.dumps(enforced(schema))


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "normaliser": (TEXTS, normaliser),
    "masking": (TEXTS | _JSON.map(json.dumps), masking),
    "stream-guard": (st.tuples(TEXTS, _CUTS), stream_guard),
    "tool-calls": (TEXTS, tool_calls),
    "schema": (SCHEMAS, schemas),
}


def timed(target: Callable[[Any], None], value: Any) -> None:
    """Run a target; slowness is a finding too."""
    started = time.process_time()  # of its own work: the machine may be busy
    target(value)
    assert time.process_time() - started < _SLOW_S, "it takes too long"
