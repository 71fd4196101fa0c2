"""Every task by its name, and from files of the user's own. A new group of tasks is a module and one entry here."""

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
    """Return the task called `name`, or that of a Python file, which holds it as `TASK`.

    Raises:
        UserError: there is none; the message lists the names there are.
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
    """The file is run, as any script of the user's: it is named by them, never by data."""
    if not Path(path).is_file():
        raise UserError(f"no task file {path}")
    spec = importlib.util.spec_from_file_location(f"task_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            spec.loader.exec_module(module)
    except BaseException as error:  # also `sys.exit`, which would end the sweep as if all were well
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {first_line(error)})") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise UserError(f"{path}: a task file sets TASK to a beamplatform.tasks.Task, found {type(task).__name__}")
    if not isinstance(task.name, str) or not re.fullmatch(NAME, task.name) or task.name in TASKS:
        raise UserError(
            f"{path}: the name of a task must be {NAME_IN_WORDS}, and not that of another task, found {task.name!r}"
        )
    for field, good, what in _fields(task):
        if not good:
            found = shortened(repr(getattr(task, field)))
            raise UserError(f"{path}: {field} of the task {task.name} must be {what}, found {found}")
    return task


def _fields(task: Task) -> Iterator[tuple[str, bool, str]]:
    """(field, whether its value is of the right kind, what would be) of a task of the user's own."""
    for field in ("prompt", "extract", "correct", "requires", "parse", "scorable", "note"):
        yield field, callable(getattr(task, field)), "a function"
    yield "extract_for", task.extract_for is None or callable(task.extract_for), "a function or None"
    tokens: object = task.max_new_tokens
    yield "max_new_tokens", isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1, "an integer >= 1"
    stop: object = task.stop
    texts = isinstance(stop, tuple | list) and all(isinstance(text, str) and text for text in stop)
    yield "stop", texts, "a tuple of texts that are not empty"
    yield "files", _is_place(task.files), "a path, in which {name} and {split} may stand and no other braces"
    options = isinstance(task.options, Mapping) and all(isinstance(one, Option) for one in task.options.values())
    yield "options", options, "a dict of names and Options"


def _is_place(files: object) -> bool:
    try:
        return isinstance(files, str) and bool(files.format(name="name", split="split"))
    except (ValueError, LookupError, AttributeError):
        return False
