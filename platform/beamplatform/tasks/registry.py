"""Every task by its name. A new group of tasks is a module of its own and one entry here."""

from __future__ import annotations

from beamplatform.errors import UserError
from beamplatform.tasks.code import HUMANEVAL, MBPP
from beamplatform.tasks.commonsense import COMMONSENSE
from beamplatform.tasks.gsm8k import GSM8K
from beamplatform.tasks.math import MATH
from beamplatform.tasks.task import Task
from beamplatform.tasks.word_problems import WORD_PROBLEMS

TASKS: dict[str, Task] = {task.name: task for task in (*COMMONSENSE, GSM8K, MATH, *WORD_PROBLEMS, HUMANEVAL, MBPP)}


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UserError: there is none; the message lists the names there are.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise UserError(f"unknown task {name!r}: allowed are {', '.join(TASKS)}") from None
