"""Wording: what users read says what happened and what to do, in the field's terms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("cluster", "serve_app", "train_jobs", "data_jobs")
#: Phrases that a reader would have to decode, and the terms for them.
RIDDLES = {
    r"\bwhoever\b": "name the role",
    r"\bnobody\b": "say what happens instead",
    r"\bwhom?\b .*\btrusts\b": "is not trusted",
    r"\bstretch(es)?\b": "range or period",
    r"\bheard\b": "acknowledged",
    r"not surely": "not attributable",
    r"come right": "recover",
    r"of its own: it gives none": "cannot set limits",
    r"of yours\b": "not found",
    r"\bof before\b": "older",
}


def _sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (REPOSITORY / package).rglob("*.py")


def _messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The text of every string that is no docstring, f-strings included."""
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # a docstring of an attribute
            documented.add(id(node.value))
        if not isinstance(node, ast.Constant) or id(node) in documented:
            continue
        if isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("pattern", RIDDLES)
def test_no_message_has_to_be_decoded(pattern: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {text!r}"
        for path in _sources()
        for line, text in _messages(ast.parse(path.read_text(encoding="utf-8")))
        if re.search(pattern, text, re.IGNORECASE)
    ]
    assert not found, f"{RIDDLES[pattern]}: {found}"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("serve_app/gateway/delegation.py", "a key with limits cannot set limits"),
        ("serve_app/gateway/admin.py", "not found"),
        ("cluster/rollout/decide.py", "not attributable to the candidate"),
        ("cluster/rollout/decide.py", "it did not recover"),
        ("cluster/cli/plane.py", "enabled; no version was live"),
    ],
)
def test_messages_use_the_fields_terms(module: str, message: str) -> None:
    tree = ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))
    assert any(message in text for _, text in _messages(tree))
