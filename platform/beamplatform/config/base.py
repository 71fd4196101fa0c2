"""What all sections of a suite share: their base class, and the types of seeds, task names and paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from beamplatform.errors import UserError, shortened
from beamplatform.tasks import get_task
from beamplatform.validation import check_numbers


class Section(BaseModel):
    """A part of a suite: unknown keys are errors, numbers are finite, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        return check_numbers(cls, values)


def _absolute(value: str | None) -> str | None:
    """Make a path absolute if it exists here, because workers run in folders of their own."""
    if value is None or value in ("tiny", "embedded"):
        return value
    path = _path(value)
    return str(Path(path).resolve()) if os.path.exists(path) else value


def _path(value: str) -> str:
    """Return the path with the home folder in place of `~`.

    Raises:
        ValueError: no file system could have such a path.
    """
    if not value.strip() or any(ord(character) < 32 for character in value):
        raise ValueError(f"must be a path without line breaks and control characters, got {shortened(repr(value))}")
    if any(len(part.encode(errors="surrogateescape")) > 255 for part in value.split("/")):
        raise ValueError(f"must be a path without a part of more than 255 bytes, got {shortened(repr(value))}")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise ValueError(f"must be a path of this machine, which has no home folder {value.partition('/')[0]}")
    return path


def _task(name: str) -> str:
    """Return the name of a built-in task, or the absolute path of a task file, after checking that it exists."""
    name = str(Path(_path(name)).resolve()) if name.endswith(".py") else name
    try:
        get_task(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return name


Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
"""A seed that NumPy's RandomState accepts.

NumPy's RandomState draws configurations, and Optuna draws from it, too. PyTorch and vLLM accept larger seeds.
"""

TaskName = Annotated[str, AfterValidator(_task)]
LocalPath = Annotated[str, AfterValidator(_absolute)]
