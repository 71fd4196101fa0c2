"""The embedded world: generated commonsense-like questions and a tiny pretrained model, both shipped with the package.

Neither torch nor transformers is imported here, because reading the records does not need them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from beamplatform.errors import UserError
from beamplatform.world.facts import world
from beamplatform.world.questions import SPLITS, TASKS, build

__all__ = ["SPLITS", "TASKS", "records", "tiny_model_path"]


@cache
def _built(task: str, split: str) -> tuple[dict[str, str], ...]:
    return tuple(build(task, split, world()))


def records(task: str, split: str) -> list[dict[str, str]]:
    """The records (keys instruction, input, output, answer) of one of TASKS in split "train" or "test".

    Raises:
        UserError: the embedded world does not have this task or split.
    """
    if task not in TASKS:
        raise UserError(f"the embedded data has no task {task!r}; allowed: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise UserError(f"the embedded data has no split {split!r} of {task}; allowed: {', '.join(SPLITS)}")
    return [dict(item) for item in _built(task, split)]


def tiny_model_path() -> Path:
    """The folder of the shipped tiny Llama: config.json, model.safetensors and its tokenizer."""
    return Path(__file__).resolve().parent / "assets" / "tiny"
