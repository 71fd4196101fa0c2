"""Tasks as data, and the evaluation that scores models on them."""

from __future__ import annotations

from beamplatform.tasks.evaluate import Settings, evaluate_all
from beamplatform.tasks.predictions import Prediction
from beamplatform.tasks.registry import TASKS, get_task
from beamplatform.tasks.scores import Evaluation
from beamplatform.tasks.task import Task

__all__ = ["TASKS", "Evaluation", "Prediction", "Settings", "Task", "evaluate_all", "get_task"]
