"""The embedded world: generated commonsense-like questions and a tiny pretrained model, both shipped with the package.

Light on import: neither torch nor transformers is needed to read the records.
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

    Raises UserError for a task or split that the embedded world does not have.
    """
    if task not in TASKS:
        raise UserError(f"the embedded data has no task {task!r}; allowed: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise UserError(f"the embedded data has no split {split!r} of {task}; allowed: {', '.join(SPLITS)}")
    return [dict(item) for item in _built(task, split)]


def tiny_model_path() -> Path:
    """The folder of the shipped tiny Llama: config.json, model.safetensors and its tokenizer."""
    return Path(__file__).resolve().parent / "assets" / "tiny"
