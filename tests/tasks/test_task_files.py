"""A file with a task of the user's own cannot end, or speak for, the program that runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from beamplatform.errors import UserError
from beamplatform.tasks import get_task

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
