"""Configuration base: strict pydantic models read from YAML, with dotted overrides.

Owns how a file becomes a typed value. It reads no environment variable.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ConfigError, problems

_MAX_BYTES = 1 << 20


class ConfigModel(BaseModel):
    """A frozen model that refuses fields it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


ConfigT = TypeVar("ConfigT", bound=ConfigModel)


class BaseModelRef(ConfigModel):
    """The base model that adapters stand on: any Hugging Face causal LM directory."""

    path: str
    """Directory, relative to the repository or absolute."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of its weights where it is served and trained. `auto` is bfloat16 on a GPU and on a processor
    that computes fast in it, else float32; for float16, training takes 32 bits."""


def load(model: type[ConfigT], path: Path, overrides: Iterable[str] = ()) -> ConfigT:
    """`path` as a `model`, with `a.b=value` overrides applied in order; values are YAML.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or does not fit the model.
    """
    return parse(model, _read(path), overrides, str(path))


def parse(
    model: type[ConfigT], document: dict[str, Any], overrides: Iterable[str], source: str
) -> ConfigT:
    """`document` as a `model`, with `overrides` applied; `source` names it in errors.

    Raises:
        ConfigError: it does not fit the model.
    """
    for override in overrides:
        key, mark, value = override.partition("=")
        if not mark:
            raise ConfigError(f"override {override!r} must be written key=value")
        _set(document, key.split("."), _value(override, value))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {problems(error)}") from error


def _value(override: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"override {override[:200]!r}: the value is not YAML") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"configuration file {path} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{path} is over {_MAX_BYTES} bytes: not a configuration file")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return document


def _set(document: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        below = document.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {'.'.join(keys)}: {key} is not a mapping")
        document = below
    document[keys[-1]] = value
