"""A file with a task of the user's own cannot end, or speak for, the program that runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.tasks import get_task
from beamplatform.tasks.record import Record
from beamplatform.tasks.task import Task

TASK = """
from beamplatform.tasks import Task

TASK = Task(name={name!r}, prompt=str, max_new_tokens=1, extract=str)
"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import sys\nsys.exit()", "cannot be run (SystemExit: "),
        ("import sys\nsys.exit(3)", "cannot be run (SystemExit: 3)"),
        ("raise KeyboardInterrupt", "cannot be run (KeyboardInterrupt: KeyboardInterrupt)"),
        ("class Own(BaseException): pass\nraise Own('a\\nb')", "cannot be run (Own: a)"),
        ("raise ValueError('a\\nb')", "cannot be run (ValueError: a)"),
        ("x = '\0'", "cannot be run ("),
        (TASK.format(name="boolq"), "and not that of another task, found 'boolq'"),
        (TASK.format(name="../x"), "the name of a task must be 1 to 100 letters"),
        (TASK.format(name=3), "found 3"),
    ],
)
def test_what_a_file_may_not_do(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        get_task(str(path))
    assert "\n" not in str(caught.value)


def test_what_a_file_prints_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text("print('loading')\n" + TASK.format(name="mine"))
    assert get_task(str(path)).name == "mine"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loading\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("max_new_tokens=0", "max_new_tokens of the task mine must be an integer >= 1, found 0"),
        ("max_new_tokens='8'", "max_new_tokens of the task mine must be an integer >= 1, found '8'"),
        ("prompt='x'", "prompt of the task mine must be a function, found 'x'"),
        ("correct=None", "correct of the task mine must be a function, found None"),
        ("scorable=None", "scorable of the task mine must be a function"),
        ("stop='abc'", "stop of the task mine must be a tuple of texts"),
        ("stop=('',)", "stop of the task mine must be a tuple of texts"),
        ("files='{nope}.json'", "files of the task mine must be a path"),
        ("files='{'", "files of the task mine must be a path"),
        ("files=5", "files of the task mine must be a path"),
        ("options=None", "options of the task mine must be a dict"),
    ],
)
def test_fields_of_another_kind(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "mine.py"
    fields = "dict(name='mine', prompt=str, max_new_tokens=1, extract=str)"
    path.write_text(f"from beamplatform.tasks import Task\n\nTASK = Task(**{fields} | dict({value}))\n")
    with pytest.raises(UserError, match=re.escape(message)):
        get_task(str(path))


def test_functions_that_fail() -> None:
    def fails(*_: object) -> bool:
        raise ZeroDivisionError("never")

    record = Record("1 + 1?", "2", "2")
    task = Task("mine", prompt=str, max_new_tokens=1, extract=str, scorable=fails, requires=fails, note=fails)
    for name, call in (
        ("scorable", lambda: task.can_score(record)),
        ("requires", task.check_machine),
        ("note", lambda: task.notes([record])),
    ):
        with pytest.raises(UserError, match=rf"task mine: its {name}\(\) fails \(ZeroDivisionError: never\)"):
            call()
