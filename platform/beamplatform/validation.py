"""From pydantic's reports to the one line a user needs: the place, what is wrong, what is allowed."""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


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
        message = f"{message[0].lower()}{message[1:]}, got {given!r}"
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
