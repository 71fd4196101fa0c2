"""Turns pydantic's reports into the one line a user needs: the location, what is wrong, and what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from beamplatform.errors import shortened

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
"""Pattern of names that are also names of folders: of suites, presets and sweeps."""

NAME_IN_WORDS = (
    "1 to 100 letters, digits, underscores, dots and dashes, of which the first is a letter, a digit or an underscore"
)

_NUMBERS = re.compile(r"\s*(\d{1,20})(?:-(\d{1,20}))?\s*")
_MOST_OF_A_RANGE = 1000


def expand_ranges(values: Sequence[Any]) -> list[Any]:
    """Replace a text such as ``3`` by its number, and ``0-3`` by the numbers 0, 1, 2 and 3; keep all other values.

    Raises:
        ValueError: a range is empty or unreasonably long.
    """
    result: list[Any] = []
    for value in values:
        match = _NUMBERS.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            result.append(value)
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + _MOST_OF_A_RANGE:
            raise ValueError(f"a range such as 0-3 ascends and has at most {_MOST_OF_A_RANGE} numbers, got {value}")
        result += range(first, last + 1)
    return result


def repeated(values: Sequence[Any]) -> Any | None:
    """The first value that equals an earlier one; None if all values differ."""
    return next((value for index, value in enumerate(values) if value in values[:index]), None)


_LARGEST = 10**100
"""Larger integers are taken for typing errors; a float can hold this one."""


def check_numbers(model: type[BaseModel], values: Any) -> Any:
    """Refuse values that pydantic would accept as numbers: `true` and `false` (as 1 and 0), and huge integers.

    Returns the unchanged values.

    Raises:
        ValueError: the message names the key.
    """
    for key, value in values.items() if isinstance(values, Mapping) else ():
        field = model.model_fields.get(str(key))
        if isinstance(value, bool):
            if field is not None and not _takes_booleans(field.annotation):
                raise ValueError(f"{key}: must not be {str(value).lower()}; give the value itself")
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{key}: must lie between -10^100 and 10^100")
    return values


def _takes_booleans(annotation: Any) -> bool:
    """Whether an annotation allows `true` or `false`, as `bool`, `Any` and a literal of either do."""
    if annotation is bool or annotation is Any or isinstance(annotation, bool):
        return True
    return any(_takes_booleans(part) for part in get_args(annotation))


def describe_error(error: ValidationError, model: type[BaseModel]) -> tuple[list[str], str]:
    """(location, message) of the first error; the location holds only keys of the user's file."""
    first = error.errors(include_url=False)[0]
    location = _real_location(model, first["loc"])
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, first["loc"][:-1])
        allowed = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return location, f"unknown key; {hint}allowed: {', '.join(allowed)}"
    message = first["msg"].removeprefix("Value error, ")
    input_value = first.get("input")
    if first["type"] not in {"value_error", "missing"} and isinstance(input_value, (str, int, float, bool, type(None))):
        message = f"{message[0].lower()}{message[1:]}, got {shortened(repr(input_value))}"
    return location, message


def _real_location(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The location without the names of union members that pydantic adds (`warmup.int` is the key `warmup`)."""
    keys: list[str] = []
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            keys.append(str(part))
            field = current.model_fields.get(str(part))
            current = _strip(field.annotation) if field else None
        elif get_origin(current) is dict:
            keys.append(str(part))
            current = _strip(get_args(current)[1])
        elif part == "[key]":  # pydantic's mark for a wrong key, which follows the key itself
            continue
        elif isinstance(part, int):
            keys.append(str(part))
    return keys


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = _strip(field.annotation) if field else None
        elif get_origin(current) is dict:
            current = _strip(get_args(current)[1])
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _strip(annotation: Any) -> Any:
    """The annotation without `Annotated` and without an optional's None; None for any other union."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        return _strip(rest[0]) if len(rest) == 1 else None
    return annotation
