"""The tasks: their records and prompts, and how an answer is extracted and compared."""

from __future__ import annotations

from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record
from beamplatform.tasks.registry import TASKS, get_task
from beamplatform.tasks.task import Task

__all__ = ["TASKS", "Record", "Task", "alpaca_prompt", "get_task"]
