"""How request bodies treat what clients add: nulls, fields without effect, numbers in disguise.

Client libraries send every field they know. What asks for nothing is accepted, what is accepted
without effect is named in a warning, and what would change the answer and is not supported is
refused by name. docs/openai-compatibility.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)
from pydantic_core import PydanticCustomError

_TOKENS = "token_ids"
#: How a model hands on what it ignored; what a client sends by this name is dropped.
_IGNORED = "\0ignored"


class WireModel(BaseModel):
    """A strict body in which `null` means "not given", whatever the field."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    #: Fields that are accepted without effect, with a warning.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    #: Fields that are not supported, and the values of them that ask for nothing.
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    #: Whether any other field is ignored too, but for those of `REFUSED`.
    LENIENT: ClassVar[bool] = False
    REFUSED: ClassVar[frozenset[str]] = frozenset()
    _PLAIN: ClassVar[frozenset[str]] = frozenset()
    ignored: tuple[str, ...] = Field(default=(), alias="\0ignored", exclude=True, repr=False)
    """The fields that were sent and have no effect."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        names = {field.alias or name for name, field in cls.model_fields.items()}
        cls._PLAIN = frozenset(names - {_IGNORED} - cls.NEUTRAL.keys())

    @model_validator(mode="before")
    @classmethod
    def _lenient(cls, data: Any) -> Any:
        # Most requests need no second look.
        if not isinstance(data, dict) or (
            cls._PLAIN.issuperset(data) and None not in data.values()
        ):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        given.pop(_IGNORED, None)
        for name, values in cls.NEUTRAL.items():
            # Not `in`: to Python, 0 is False and 1 is True.
            if name in given and any(_same(given[name], value) for value in values):
                del given[name]
        ignored = tuple(name for name in given if cls._ignores(name))
        for name in ignored:
            del given[name]
        return {**given, _IGNORED: ignored}

    @classmethod
    def _ignores(cls, name: str) -> bool:
        if name in cls.IGNORED:
            return True
        known = name in cls._PLAIN or name in cls.NEUTRAL
        return cls.LENIENT and not known and name not in cls.REFUSED


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def without_nulls(value: Any) -> Any:
    """A JSON value without the fields that are `null`, at any depth; for bodies that hold models
    which are not of this file."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _texts(value: Any) -> Any:
    """Refuse token ids by name: they mean something else to every tokenizer."""
    items = value if isinstance(value, list) else []
    if any(isinstance(item, int | list) and not isinstance(item, bool) for item in items):
        raise PydanticCustomError(_TOKENS, "token ids are not supported; send text")
    return value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Bool = StrictBool
Metadata = Annotated[dict[str, str], BeforeValidator(without_nulls)]
Texts = Annotated[str | list[str], BeforeValidator(_texts)]
