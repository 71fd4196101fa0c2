"""From pydantic's reports to the one line a user needs: the place, what is wrong, what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from beamplatform.errors import shortened

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
"""What is also the name of a folder: a suite, a preset, a sweep."""

NAME_IN_WORDS = (
    "1 to 100 letters, digits, underscores, dots and dashes, of which the first is a letter, a digit or an underscore"
)

_NUMBERS = re.compile(r"\s*(\d{1,20})(?:-(\d{1,20}))?\s*")
_MOST_OF_A_RANGE = 1000


def expand_ranges(values: Sequence[Any]) -> list[Any]:
    """The values, with the number for a text such as ``3``, and the numbers 0, 1, 2 and 3 for the text ``0-3``.

    Raises:
        ValueError: a range that is empty or unreasonably long.
    """
    result: list[Any] = []
    for value in values:
        found = _NUMBERS.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            result.append(value)
            continue
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + _MOST_OF_A_RANGE:
            raise ValueError(f"a range such as 0-3 ascends and has at most {_MOST_OF_A_RANGE} numbers, got {value}")
        result += range(first, last + 1)
    return result


def repeated(values: Sequence[Any]) -> Any | None:
    """The first value that stands there twice; None where all differ."""
    return next((value for place, value in enumerate(values) if value in values[:place]), None)


_LARGEST = 10**100
"""Larger integers are taken for a slip of the hand; a float holds this one."""


def check_numbers(model: type[BaseModel], values: Any) -> Any:
    """Refuse what pydantic would take for a number: `true` and `false` (as 1 and 0), and integers beyond all measure.

    Raises:
        ValueError: names the key.
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
    """Whether `true` or `false` is one of the values; all of them where anything is."""
    if annotation is bool or annotation is Any or isinstance(annotation, bool):
        return True
    return any(_takes_booleans(part) for part in get_args(annotation))


def describe_error(error: ValidationError, model: type[BaseModel]) -> tuple[list[str], str]:
    """(location, message) of the first error; the location holds the file's own keys only."""
    first = error.errors(include_url=False)[0]
    location = _real_location(model, first["loc"])
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, first["loc"][:-1])
        allowed = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return location, f"unknown key; {hint}allowed: {', '.join(allowed)}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    if first["type"] not in {"value_error", "missing"} and isinstance(given, (str, int, float, bool, type(None))):
        message = f"{message[0].lower()}{message[1:]}, got {shortened(repr(given))}"
    return location, message


def _real_location(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Without the names of union members that pydantic adds (`warmup.int` is the key `warmup`)."""
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
        elif part == "[key]":  # pydantic's mark of a wrong key, which the part before names
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
    """Without Annotated, and without None of an optional."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        return _strip(rest[0]) if len(rest) == 1 else None
    return annotation
