"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168), scored as MetaMath's harness scores it (eval_gsm8k.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beamplatform.errors import UserError
from beamplatform.tasks.answers.numbers import first_number
from beamplatform.tasks.prompts import alpaca_prompt
from beamplatform.tasks.record import Record, text_field
from beamplatform.tasks.task import Task

MARKER = "The answer is: "
STOP = ("Instruction:", "Instruction", "Response:", "Response")


def step_by_step(record: Record) -> str:
    """Return the prompt, followed by the beginning of the response."""
    return alpaca_prompt(record.instruction, record.input).rstrip("\n") + " Let's think step by step."


def parse(row: Mapping[str, Any], where: str) -> Record:
    """Return the record of a row {"question", "answer"}; the gold answer follows "#### "."""
    question, solution = text_field(row, "question", where), text_field(row, "answer", where)
    _, marker, answer = solution.rpartition("####")
    if not marker:
        raise UserError(f"{where}: the solution has no answer behind '#### '")
    return Record(question, solution, answer.replace(",", "").strip())


def extract(completion: str) -> str | None:
    """Return the first number after the last marker, rounded to an integer; None without a marker or number."""
    _, marker, rest = completion.rpartition(MARKER)
    number = first_number(rest) if marker else None
    return None if number is None else str(round(number))


def correct(extracted: str, record: Record) -> bool:
    """Whether the extracted and the gold answer are the same integer."""
    gold = first_number(record.answer)
    return gold is not None and int(extracted) == gold


def is_integer(record: Record) -> bool:
    """Whether the gold answer is an integer; no other can be matched, as extracted answers are rounded."""
    gold = first_number(record.answer)
    return gold is not None and gold.denominator == 1


GSM8K = Task(
    name="gsm8k",
    prompt=step_by_step,
    max_new_tokens=512,
    stop=STOP,
    extract=extract,
    correct=correct,
    files="gsm8k/{split}.jsonl",
    parse=parse,
    scorable=is_integer,
)
