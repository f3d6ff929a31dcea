"""Reads what a base model's directory states of itself: its digest, licence and permitted use."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.errors import DataError
from cluster.records.model import UNSTATED, BaseModelInfo
from cluster.storage import tree_digest

_MAX_CARD = 1 << 20


def describe(path: Path) -> BaseModelInfo:
    """The model in `path`; licence and permitted use as its card's front matter states them.

    Raises:
        DataError: there is no such directory, or its card cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not the directory of a base model")
    card = path / "README.md"
    stated = _front_matter(card) if card.is_file() else {}
    return BaseModelInfo(
        name=path.name,
        path=str(path),
        digest=tree_digest(path),
        licence=str(stated.get("license", UNSTATED))[:64],
        permitted_use=str(stated.get("permitted_use", UNSTATED))[:2000],
    )


def _front_matter(card: Path) -> dict[str, object]:
    if card.stat().st_size > _MAX_CARD:
        raise DataError(f"{card} is over {_MAX_CARD} bytes: not a model card")
    opening, mark, rest = card.read_text(encoding="utf-8").partition("---\n")
    head, mark, _ = rest.partition("\n---") if mark and not opening else ("", "", "")
    if not mark:
        return {}
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise DataError(f"the front matter of {card} is not YAML: {error}") from error
    return found if isinstance(found, dict) else {}
