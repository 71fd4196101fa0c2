"""The other math sets of LLM-Adapters: AQuA with five choices, and word problems whose answer is a number.

Numbers are scored as in the harness of LLM-Adapters (evaluate.py): the last number of a completion must lie within
0.001 of the gold answer. A choice is the letter after the last "answer is", or else the last letter in parentheses.
(The harness takes the first capital letter from A to E anywhere. The solutions in its own data begin with "A:", so
that it reads them as choice A.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from beamplatform.tasks.answers.numbers import first_number, last_number
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record, text_field
from beamplatform.tasks.task import Task

TOLERANCE = Fraction(1, 1000)
NUMERIC = ("AddSub", "MultiArith", "SVAMP", "SingleEq", "mawps")
_CHOICE = re.compile(r"(?<![A-Za-z])\(?([A-E])\)?(?![A-Za-z])")
_IN_PARENTHESES = re.compile(r"\(([A-E])\)")


def parse(row: Mapping[str, Any], where: str) -> Record:
    """Return the record of a row {"instruction", "answer", "output"}.

    The output is a model's solution, and may be empty or wrong.
    """
    output = row.get("output")
    answer = text_field(row, "answer", where)
    return Record(text_field(row, "instruction", where), output if isinstance(output, str) else "", answer)


def prompt(record: Record) -> str:
    return alpaca_prompt(record.instruction, record.input)


def extract_number(completion: str) -> str | None:
    """Return the last number of a completion as an exact fraction, such as 7, -5/2 or 3/4; None without a number."""
    number = last_number(completion)
    return None if number is None else str(number)


def equal_numbers(extracted: str, record: Record) -> bool:
    gold = first_number(record.answer)
    return gold is not None and abs(Fraction(extracted) - gold) <= TOLERANCE


def has_number(record: Record) -> bool:
    """Whether the gold answer holds a number."""
    return first_number(record.answer) is not None


def is_choice(record: Record) -> bool:
    """Whether the gold answer is the letter of a choice."""
    return record.answer in tuple("ABCDE")


def extract_choice(completion: str) -> str | None:
    """Return the letter of the choice that a completion makes; None if it makes none."""
    _, marker, rest = completion.rpartition("answer is")
    if marker and (match := _CHOICE.search(rest)):
        return match[1]
    letters = _IN_PARENTHESES.findall(completion)
    return letters[-1] if letters else None


WORD_PROBLEMS: tuple[Task, ...] = (
    Task(name="AQuA", prompt=prompt, max_new_tokens=256, extract=extract_choice, parse=parse, scorable=is_choice),
    *(
        Task(
            name=name,
            prompt=prompt,
            max_new_tokens=256,
            extract=extract_number,
            correct=equal_numbers,
            parse=parse,
            scorable=has_number,
        )
        for name in NUMERIC
    ),
)
