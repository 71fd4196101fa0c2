"""Defines records, each one question of a task with its gold answer, and parses rows into records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from beamplatform.errors import UserError


@dataclass(frozen=True)
class Record:
    """One question and its gold answer, in the form of LLM-Adapters' data sets.

    Attributes:
        instruction: the question with its choices, as it stands in the prompt.
        output: the text that a model is trained to answer with.
        answer: the gold answer, with which the extracted answer is compared, such as "answer2".
        input: further text that the instruction refers to; empty in the commonsense sets.
    """

    instruction: str
    output: str
    answer: str
    input: str = ""


RowParser = Callable[[Mapping[str, Any], str], Record | None]
"""Turns a row into a record, or into None to leave it out. Raises UserError for a wrong row.

The second argument names the row in messages.
"""


def text_field(row: Mapping[str, Any], field: str, where: str) -> str:
    """Return the value of a field, which must be a text that is not blank.

    Raises:
        UserError: the field is missing, blank or no text; the message names the record, the field and what was found.
    """
    if field not in row:
        raise UserError(f"{where}: no field {field!r}, found {', '.join(map(str, row)) or '(no fields)'}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        actual = "an empty string" if isinstance(value, str) else json_type(value)
        raise UserError(f"{where}: field {field!r} must be a non-empty string, found {actual}")
    return value


def parse_record(row: Mapping[str, Any], where: str) -> Record:
    """Return the record of a row of LLM-Adapters' data: {"instruction", "input", "output", "answer"}.

    Raises:
        UserError: a field is missing or wrong; the message names the record, the field and what was found.
    """
    for field in ("instruction", "output", "answer"):
        if field not in row:
            raise UserError(
                f"{where}: no field {field!r}; needed are instruction, output and answer, optional is input, "
                f"found {', '.join(map(str, row)) or '(no fields)'}"
            )
        text_field(row, field, where)
    input_text = row.get("input")
    # The hub's columnar format turns an absent optional field into None.
    if input_text is not None and not isinstance(input_text, str):
        raise UserError(f"{where}: field 'input' must be a string, found {json_type(input_text)}")
    return Record(row["instruction"], row["output"], row["answer"], input_text or "")


def require_text(value: str, where: str, field: str) -> None:
    """Refuse a text with half of a surrogate pair, which JSON can hold (\\ud800) and no tokenizer accepts.

    Raises:
        UserError: the text has one; the message names the record and the field.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds {value[error.start]!r}, half of a surrogate pair, which is no character"
        ) from error


def json_type(value: Any) -> str:
    """Return the type of a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
