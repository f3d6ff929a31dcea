"""Schemas bind, or are refused by the keyword's name."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.schemas import check_schema, enforced

_LINK: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^\\d{3}$"}}},
        {"type": "string", "pattern": "\\(\\?=no look-ahead\\)"},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": False},
        {"$defs": {"n": _LINK}, "$ref": "#/$defs/n"},
        {
            "$defs": {
                "n": {**_LINK, "required": ["next"], "anyOf": [{"$ref": "#/$defs/m"}]},
                "m": {},
            },
            "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
            "required": ["next"],
        },
        {"properties": {"not": {"type": "string"}, "if": {"type": "string"}}},
        {"enum": [{"not": 1}], "default": {"if": 2}},
    ],
)
def test_what_binds_passes(schema: dict[str, Any]) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"pattern": "^(?=a)b"}}}, "schema.properties.a.pattern"),
        ({"pattern": "a(?!b)"}, "looks ahead or behind"),
        ({"pattern": "(?<=a)b"}, "looks ahead or behind"),
        ({"pattern": "(a)\\1"}, "back-reference"),
        ({"pattern": "\\bword\\b"}, "boundary"),
        ({"patternProperties": {"(?=x)": {}}}, "schema.patternProperties"),
        ({"not": {"type": "null"}}, "schema.not cannot be enforced"),
        ({"items": {"if": {}, "then": {}}}, "schema.items.if"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"anyOf": [{"contains": {"const": 1}}]}, "schema.anyOf.0.contains"),
        ({"dependentRequired": {"a": ["b"]}}, "schema.dependentRequired"),
        ({"$ref": "#"}, "without end"),
        ({"$defs": {"n": {**_LINK, "required": ["next"]}}, "$ref": "#/$defs/n"}, "without end"),
        ({"anyOf": [{"$ref": "#/anyOf/1"}, {"$ref": "#/anyOf/0"}]}, "without end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without end"),
        ({"$ref": "https://example.com/x.json"}, "into the schema itself"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#anchor"}, "anchor"),
    ],
)
def test_what_does_not_bind_is_named(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("$", r"\$").replace(".", r"\.")):
        check_schema(schema)


def test_depth_is_bounded() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="deep"):
        check_schema(schema)


def test_what_asks_for_nothing_is_left_out_for_the_engine() -> None:
    schema = {
        "uniqueItems": False,
        "items": {"not": False, "enum": [{"not": 1}]},
        "properties": {"not": {"type": "string"}},
    }
    assert enforced(schema) == {
        "items": {"enum": [{"not": 1}]},
        "properties": {"not": {"type": "string"}},
    }


@pytest.mark.parametrize(
    ("pattern", "passes"),
    [
        ("^[a-z]{1,64}@[a-z]{1,63}$", True),
        ("^(?:[0-9]{3}-){2}[0-9]{4}$", True),
        ("^\\d{1,1000}$", True),
        ("[{]{3}\\{99999\\}", True),
        ("(a{1,50}){1,50}", False),
        ("((((a{1,9}){1,9}){1,9}){1,9})", False),
        ("(?:(?<x>a|b){99}){99}", False),
        ("a{99999}", False),
        ("a{99999999999999999999}", False),
    ],
)
def test_nested_repetition_is_bounded_before_anything_compiles_it(
    pattern: str, passes: bool
) -> None:
    if passes:
        check_schema({"type": "string", "pattern": pattern})
        return
    with pytest.raises(ValueError, match=r"schema\.pattern repeats too much"):
        check_schema({"type": "string", "pattern": pattern})


@pytest.mark.parametrize(
    ("divisors", "passes"),
    [
        ((97,), True),
        ((0.01,), True),
        ((1_000_000_000,), True),
        ((1.25, 100), True),
        ((1024,), True),
        ((97, 101, 103), False),
        ((10**400,), False),
        ((99_991,), False),
        ((1_953_125,), False),
        ((2**26,), False),
        ((1999, 1997), False),
        ((0.1 + 0.2,), False),
        ((1e30,), True),
        ((1e308,), False),
        ((0,), False),
        ((-3,), False),
        ((True,), False),
        (("2",), False),
        ((float("inf"),), False),
    ],
)
def test_divisors_are_bounded_together(divisors: tuple[Any, ...], passes: bool) -> None:
    """An automaton has a state for each remainder: of 999,983 the engine took seven seconds."""
    schema = {"properties": {f"p{n}": {"multipleOf": one} for n, one in enumerate(divisors)}}
    if passes:
        check_schema(schema)
        return
    with pytest.raises(ValueError, match=r"schema\.properties\.p\d\.multipleOf"):
        check_schema(schema)


@pytest.mark.parametrize(
    "hidden",
    [
        {"type": "integer", "multipleOf": 999_983},
        {"type": "string", "pattern": "(a{900}b{900}){900}"},
        {"not": {"type": "null"}},
    ],
)
@pytest.mark.parametrize("where", ["foo", "default", "enum", "examples"])
def test_a_reference_leads_to_nothing_that_was_not_checked(
    hidden: dict[str, Any], where: str
) -> None:
    place: Any = [hidden] if where in ("enum", "examples") else {"bar": hidden}
    pointer = f"#/{where}/0" if isinstance(place, list) else f"#/{where}/bar"
    schema = {"type": "object", "properties": {"a": {"$ref": pointer}}, where: place}
    with pytest.raises(ValueError, match=r"schema\.properties\.a\.\$ref"):
        check_schema(schema)
