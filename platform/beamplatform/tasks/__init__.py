"""Tasks as data, and the evaluation that scores a model on them."""

from __future__ import annotations

from beamplatform.tasks.evaluate import Evaluation, evaluate
from beamplatform.tasks.predictions import Prediction
from beamplatform.tasks.registry import TASKS, get_task
from beamplatform.tasks.task import Task

__all__ = ["TASKS", "Evaluation", "Prediction", "Task", "evaluate", "get_task"]
