"""Display names of methods and tasks, and the order of tasks."""

from __future__ import annotations

METHODS = {
    "beamlora": "BeamLoRA",
    "lora": "LoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "relora": "ReLoRA",
    "increlora": "IncreLoRA",
    "full": "Full fine-tuning",
}

TASKS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "ARC-Easy": "ARC-e",
    "ARC-Challenge": "ARC-c",
    "openbookqa": "OBQA",
    "gsm8k": "GSM8K",
    "MATH": "MATH",
    "humaneval": "HumanEval",
    "mbpp": "MBPP",
}
"""Task -> its short name in papers, in the order of the benchmarks' tables."""

CHANCE = {
    "boolq": 1 / 2,
    "piqa": 1 / 2,
    "social_i_qa": 1 / 3,
    "hellaswag": 1 / 4,
    "winogrande": 1 / 2,
    "ARC-Easy": 1 / 4,
    "ARC-Challenge": 1 / 4,
    "openbookqa": 1 / 4,
}
"""Task -> accuracy of guessing among a question's options. A handful of ARC questions have three or five options."""


def method_label(method: str) -> str:
    """Return the method's usual spelling, or the name itself if it has none."""
    return METHODS.get(method, method)


def task_label(task: str) -> str:
    """Return the task's usual short name in papers, or the name itself if it has none."""
    return TASKS.get(task, task)


def task_order(task: str) -> tuple[int, str]:
    """Sort key: the benchmarks' tasks in their own order, then all other tasks by name."""
    ordered = list(TASKS)
    return (ordered.index(task) if task in TASKS else len(ordered), task)
