"""The eight commonsense tasks, scored as the harness of LLM-Adapters scores them.

DoRA and BeamLoRA report their results with this harness (https://github.com/AGI-Edgerunners/LLM-Adapters,
commonsense_evaluate.py). An answer is the first match, case-sensitive, of the task's labels joined by `|`.
The pattern has no word boundaries, and none are added here, so that scores are comparable with published ones:
"answer10" counts as answer1, "untrue" as true, and "Answer1" as no answer. The published runs search with 4
beams (`evaluation.beams: 4`); greedy is the default here because it is several times faster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record
from beamplatform.tasks.task import Task, as_published

MAX_NEW_TOKENS = 32

_ANSWERS = tuple(f"answer{n}" for n in range(1, 6))

LABELS: dict[str, tuple[str, ...]] = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "social_i_qa": _ANSWERS,
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
    "ARC-Easy": _ANSWERS,
    "ARC-Challenge": _ANSWERS,
    "openbookqa": _ANSWERS,
}
"""The labels of every task, in the order in which the benchmark's tables list the tasks."""


def first_label(labels: tuple[str, ...]) -> Callable[[str], str | None]:
    """Return a function that extracts the first label in a completion, or None if there is none."""
    pattern = re.compile("|".join(map(re.escape, labels)))

    def extract(completion: str) -> str | None:
        match = pattern.search(completion)
        return match.group() if match else None

    return extract


def has_label(labels: tuple[str, ...]) -> Callable[[Record], bool]:
    """Return a function that says whether a record's answer is one of the labels."""
    return lambda record: record.answer in labels


def _prompt(record: Record) -> str:
    return alpaca_prompt(record.instruction, record.input)


def _hellaswag_note(records: Sequence[Record]) -> str:
    """Return a note if the markers of WikiHow's articles are missing.

    The published HellaSwag begins with some 3200 records of another source. The records from WikiHow follow, and they
    contain markers.
    """
    if len(records) < 4000 or any("[step]" in record.instruction for record in records):
        return ""
    return "variant: WikiHow's markers, such as [step], are missing in its records"


_NOTES = {"hellaswag": _hellaswag_note}

COMMONSENSE: tuple[Task, ...] = tuple(
    Task(
        name=name,
        prompt=_prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        extract=first_label(labels),
        scorable=has_label(labels),
        note=_NOTES.get(name, as_published),
    )
    for name, labels in LABELS.items()
)
