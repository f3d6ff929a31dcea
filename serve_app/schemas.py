"""What a JSON Schema of a client may ask for: it binds the answer, or it is refused by name.

Knows what the engine's grammars can enforce; a keyword that they would overlook is an error here,
never a hope. Pure, and linear in the size of the schema but for its few rounds of `_finite`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from math import lcm
from typing import Any
from urllib.parse import unquote

MAX_DEPTH = 32
_MAX_NODES = 4_000
#: Of one pattern: the engine compiles it for everybody's tokens while everybody waits.
_MAX_STATES = 2_000
_MOST_DIVISOR = 1e300
#: Keywords no grammar enforces, and values of them that ask for nothing.
_UNENFORCED: dict[str, tuple[Any, ...]] = {
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "$dynamicRef": (),
    "else": (),
    "if": (),
    "maxContains": (),
    "minContains": (),
    "not": (False,),
    "propertyNames": ({}, True),
    "then": (),
    "unevaluatedItems": (True,),
    "unevaluatedProperties": (True,),
    "uniqueItems": (False,),
}
#: Keywords whose value is a schema, a list of schemas, or an object of schemas by name.
_ONE = ("additionalProperties", "items", "additionalItems", "contains", "not")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\((?:\?[=!]|\?<[=!])")
_BACK_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:[1-9]|k<|[bB])")
#: An escape, a class, a repetition, the begin of a group, or any other character.
_REGEX_TOKEN = re.compile(
    r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]"
    r"|(?P<repeat>\{\d*,?\d*\}\??|[*+?])|\((?:\?(?:P?<\w+>|[a-z-]*:))?|.",
    re.DOTALL,
)

Node = tuple[str, Any]


def check_schema(schema: dict[str, Any]) -> None:
    """Pass a schema whose every keyword binds, and that some finite answer fits.

    Raises:
        ValueError: it names the keyword, and where it stands in the schema.
    """
    nodes = list(_nodes(schema))
    known = {id(node) for _, node in nodes}
    _check_multiples(nodes)
    for path, node in nodes:
        for keyword, neutral in _UNENFORCED.items():
            if keyword in node and node[keyword] not in neutral:
                raise ValueError(f"{_at(path, keyword)} cannot be enforced")
        _check_patterns(path, node)
        if "$ref" in node and id(_target(schema, path, node["$ref"])) not in known:
            # What stands where no schema is looked for was not checked.
            raise ValueError(f"{_at(path, '$ref')} points to what is no schema: use $defs")
    if not _finite(schema, [node for _, node in nodes]):
        raise ValueError("the schema refers to itself without end: no finite answer fits it")


def enforced(schema: Any) -> Any:
    """A copy of a schema without the keywords that ask for nothing: engines refuse them all."""
    if isinstance(schema, list):
        return [enforced(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            kept[keyword] = {name: enforced(item) for name, item in value.items()}
        elif keyword in ("enum", "const", "default", "examples"):
            kept[keyword] = value
        elif value not in _UNENFORCED.get(keyword, ()):
            kept[keyword] = enforced(value)
    return kept


def _at(path: str, keyword: str) -> str:
    return f"schema{path}.{keyword}"


def _nodes(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema with its path, from the root on."""
    waiting: list[tuple[str, Any, int]] = [("", schema, 0)]
    seen = 0
    while waiting:
        path, node, depth = waiting.pop()
        if not isinstance(node, dict):
            continue
        seen += 1
        if depth > MAX_DEPTH or seen > _MAX_NODES:
            raise ValueError(f"the schema is nested over {MAX_DEPTH} deep or too large")
        yield path, node
        for place, child in _children(node):
            waiting.append((path + place, child, depth + 1))


def _children(node: dict[str, Any]) -> Iterator[Node]:
    for keyword in _ONE:
        if isinstance(node.get(keyword), dict):
            yield f".{keyword}", node[keyword]
    for keyword in _MANY:
        if isinstance(node.get(keyword), list):
            yield from ((f".{keyword}.{i}", item) for i, item in enumerate(node[keyword]))
    for keyword in _NAMED:
        if isinstance(node.get(keyword), dict):
            yield from ((f".{keyword}.{name}", item) for name, item in node[keyword].items())


def _check_multiples(nodes: list[tuple[str, dict[str, Any]]]) -> None:
    """Refuse divisors whose automata, one state for each remainder, are too large together: those
    of one number multiply."""
    total = 1
    for path, node in nodes:
        divisor = node.get("multipleOf")
        if divisor is None:
            continue
        if isinstance(divisor, bool) or not isinstance(divisor, int | float):
            raise ValueError(f"{_at(path, 'multipleOf')} is not a number")
        total = lcm(total, _remainders(divisor))
        if total > _MAX_STATES:
            raise ValueError(
                f"{_at(path, 'multipleOf')} cannot be enforced: it has too many remainders"
            )


def _remainders(divisor: float) -> int:
    """Of a divisor without its zeros and its decimal point, which cost nothing."""
    if not 0 < divisor < _MOST_DIVISOR:
        return _MAX_STATES + 1
    _, digits, _ = Decimal(str(divisor)).as_tuple()
    return int("".join(map(str, digits)).rstrip("0") or "1")


def _check_patterns(path: str, node: dict[str, Any]) -> None:
    patterns = [(_at(path, "pattern"), node.get("pattern"))]
    named = node.get("patternProperties")
    if isinstance(named, dict):
        patterns += [(_at(path, "patternProperties"), name) for name in named]
    for place, pattern in patterns:
        if pattern is None:
            continue
        if not isinstance(pattern, str):
            raise ValueError(f"{place} is not a string")
        if _LOOK_AROUND.search(pattern):
            raise ValueError(f"{place} cannot be enforced: it looks ahead or behind")
        if _BACK_REFERENCE.search(pattern):
            raise ValueError(f"{place} cannot be enforced: a boundary or back-reference")
        if (states := _states(pattern)) > _MAX_STATES:
            raise ValueError(f"{place} repeats too much: {states} states, at most {_MAX_STATES}")


def _states(pattern: str) -> int:
    """About how many states an automaton of `pattern` has: repetitions multiply as they nest.

    Reads what regular expressions have in common; what is no pattern at all the engine refuses.
    """
    open_groups, last = [0], 0
    for match in _REGEX_TOKEN.finditer(pattern):
        part = match.group()
        if match.lastgroup == "repeat":
            times = _times(part)
            open_groups[-1] += last * (times - 1)
            last *= times
        elif part.startswith("("):
            open_groups.append(0)
            last = 0
        elif part == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] += last
        else:
            last = 1
            open_groups[-1] += 1
    return sum(open_groups)


def _times(quantifier: str) -> int:
    numbers = re.findall(r"\d+", quantifier)
    if not numbers:
        return 1
    return max(1, int(numbers[-1][:6]) + quantifier.endswith(",}"))


def _target(schema: dict[str, Any], path: str, reference: Any) -> Any:
    """The subschema that a `$ref` points to."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise ValueError(f"{_at(path, '$ref')} has to point into the schema itself: #/$defs/...")
    node: Any = schema
    for part in reference.lstrip("#").split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            raise ValueError(f"{_at(path, '$ref')} points to nothing: {reference[:64]!r}")
    if reference not in ("#", "#/") and "/" not in reference:
        raise ValueError(f"{_at(path, '$ref')} names an anchor; write #/$defs/...")
    return node


def _finite(schema: dict[str, Any], nodes: list[dict[str, Any]]) -> bool:
    """Whether a finite value fits: the least fixed point of "all that is required is finite"."""
    known: set[int] = set()
    while True:
        grown = {id(node) for node in nodes if id(node) not in known and _ends(schema, node, known)}
        if not grown:
            return id(schema) in known
        known |= grown


def _ends(schema: dict[str, Any], node: dict[str, Any], known: set[int]) -> bool:
    def ends(child: Any) -> bool:
        return not isinstance(child, dict) or id(child) in known

    if "$ref" in node and not ends(_target(schema, "", node["$ref"])):
        return False
    if not all(ends(child) for child in _listed(node, "allOf")):
        return False
    for keyword in ("anyOf", "oneOf"):
        options = _listed(node, keyword)
        if options and not any(ends(child) for child in options):
            return False
    properties = node.get("properties")
    required = node.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        names = (name for name in required if isinstance(name, str))
        if not all(ends(properties.get(name)) for name in names):
            return False
    least = node.get("minItems")
    if isinstance(least, int) and least > 0:
        return ends(node.get("items")) and all(ends(one) for one in _listed(node, "prefixItems"))
    return True


def _listed(node: dict[str, Any], keyword: str) -> list[Any]:
    value = node.get(keyword)
    return value if isinstance(value, list) else []
