r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874), scored as MetaMath's harness scores it (eval_math.py).

When its parser fails, that script compares the prediction with itself, and so counts the failure as correct. Here a
failure counts as wrong. Markup around an answer is ignored in gold answers and in predictions: $x$ and \boxed{x} are x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beamplatform.errors import UserError
from beamplatform.tasks.answers.latex import bare, last_boxed, normal_form
from beamplatform.tasks.answers.mathematics import can_compare, same_mathematics
from beamplatform.tasks.gsm8k import MARKER, STOP, step_by_step
from beamplatform.tasks.record import Record, text_field
from beamplatform.tasks.task import Option, Task


def parse(row: Mapping[str, Any], where: str) -> Record:
    r"""Return the record of a row {"instruction", "output"}; the gold answer is the content of the last \boxed{}."""
    question, solution = text_field(row, "instruction", where), text_field(row, "output", where)
    answer = last_boxed(solution)
    if answer is None:
        raise UserError(f"{where}: the solution has no \\boxed answer")
    return Record(question, solution, answer)


def extract(completion: str) -> str | None:
    """Return the text after the last marker, up to a full stop at the end of a line; None if there is none."""
    _, marker, rest = completion.rpartition(MARKER)
    answer = rest.partition(".\n")[0].strip().removesuffix(".").strip()
    return answer if marker and answer else None


def correct(extracted: str, record: Record) -> bool:
    """Whether the normal forms of both answers are the same text."""
    return normal_form(bare(extracted)) == normal_form(bare(record.answer))


def correct_in_sympy(extracted: str, record: Record) -> bool:
    """Whether the normal forms are the same text, or sympy finds the answers equal."""
    return correct(extracted, record) or same_mathematics(bare(record.answer), bare(extracted))


def has_answer(record: Record) -> bool:
    """Whether the normal form of the gold answer is not empty."""
    return bool(normal_form(bare(record.answer)))


MATH = Task(
    name="MATH",
    prompt=step_by_step,
    max_new_tokens=2048,
    stop=STOP,
    extract=extract,
    correct=correct,
    files="MATH/{split}.jsonl",
    parse=parse,
    scorable=has_answer,
    options={
        "sympy": Option(
            "answers are equal where sympy says so, or within 1e-4",
            {"correct": correct_in_sympy, "requires": can_compare},
        )
    },
)
