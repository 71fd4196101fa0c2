"""Finds tasks by name, and loads tasks from the user's own files.

A new group of tasks needs a module of its own and an entry in `TASKS`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from beamplatform.errors import UserError, first_line, shortened
from beamplatform.tasks.code import HUMANEVAL, MBPP
from beamplatform.tasks.commonsense import COMMONSENSE
from beamplatform.tasks.gsm8k import GSM8K
from beamplatform.tasks.math import MATH
from beamplatform.tasks.task import Option, Task
from beamplatform.tasks.word_problems import WORD_PROBLEMS
from beamplatform.validation import NAME, NAME_IN_WORDS

TASKS: dict[str, Task] = {task.name: task for task in (*COMMONSENSE, GSM8K, MATH, *WORD_PROBLEMS, HUMANEVAL, MBPP)}


def get_task(name: str) -> Task:
    """Return the task called `name`; if `name` is the path of a Python file, return its `TASK`.

    Raises:
        UserError: there is no such task (the message lists the names), or the file does not define a valid one.
    """
    if name.endswith(".py"):
        return _from_file(name)
    try:
        return TASKS[name]
    except KeyError:
        raise UserError(
            f"unknown task {name!r}: allowed are {', '.join(TASKS)}, or a .py file with a task of your own"
        ) from None


@functools.cache
def _from_file(path: str) -> Task:
    """Run the file and return its task.

    The file is trusted like any script of the user, because only the user can name it; data cannot.
    """
    if not Path(path).is_file():
        raise UserError(f"no task file {path}")
    spec = importlib.util.spec_from_file_location(f"task_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            spec.loader.exec_module(module)
    except BaseException as error:  # including `sys.exit`, which would end the sweep as if nothing were wrong
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {first_line(error)})") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise UserError(f"{path}: a task file sets TASK to a beamplatform.tasks.Task, found {type(task).__name__}")
    if not isinstance(task.name, str) or not re.fullmatch(NAME, task.name) or task.name in TASKS:
        raise UserError(
            f"{path}: the name of a task must be {NAME_IN_WORDS}, and not that of another task, found {task.name!r}"
        )
    for field, is_valid, requirement in _fields(task):
        if not is_valid:
            actual = shortened(repr(getattr(task, field)))
            raise UserError(f"{path}: {field} of the task {task.name} must be {requirement}, found {actual}")
    return task


def _fields(task: Task) -> Iterator[tuple[str, bool, str]]:
    """Yield (field, whether its value is valid, what it must be) for the fields of a user's own task."""
    for field in ("prompt", "extract", "correct", "requires", "parse", "scorable", "note"):
        yield field, callable(getattr(task, field)), "a function"
    yield "extract_for", task.extract_for is None or callable(task.extract_for), "a function or None"
    tokens: object = task.max_new_tokens
    yield "max_new_tokens", isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1, "an integer >= 1"
    stop: object = task.stop
    texts = isinstance(stop, tuple | list) and all(isinstance(text, str) and text for text in stop)
    yield "stop", texts, "a tuple of texts that are not empty"
    yield "files", _is_place(task.files), "a path, in which {name} and {split} may stand and no other braces"
    options = isinstance(task.options, Mapping) and all(isinstance(option, Option) for option in task.options.values())
    yield "options", options, "a dict of names and Options"


def _is_place(files: object) -> bool:
    try:
        return isinstance(files, str) and bool(files.format(name="name", split="split"))
    except (ValueError, LookupError, AttributeError):
        return False
