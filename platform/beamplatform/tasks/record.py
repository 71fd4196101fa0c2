"""One question of a task and its gold answer, and how a row of a file becomes one."""

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
        output: the text a model is trained to answer with.
        answer: the label the extracted answer is compared with, such as "answer2".
        input: further text the instruction refers to; empty in the commonsense sets.
    """

    instruction: str
    output: str
    answer: str
    input: str = ""


RowParser = Callable[[Mapping[str, Any], str], Record | None]
"""Makes a record of a row, None to leave it out; the second argument names it in messages. Raises UserError."""


def text_field(row: Mapping[str, Any], field: str, where: str) -> str:
    """A field that must be a text and not empty.

    Raises:
        UserError: names the record, the field and what was found.
    """
    if field not in row:
        raise UserError(f"{where}: no field {field!r}, found {', '.join(map(str, row)) or '(no fields)'}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        found = "an empty string" if isinstance(value, str) else json_type(value)
        raise UserError(f"{where}: field {field!r} must be a non-empty string, found {found}")
    return value


def parse_record(row: Mapping[str, Any], where: str) -> Record:
    """A row of LLM-Adapters' data: {"instruction", "input", "output", "answer"}.

    Raises:
        UserError: names the record, the field and what was found.
    """
    for field in ("instruction", "output", "answer"):
        if field not in row:
            raise UserError(
                f"{where}: no field {field!r}; needed are instruction, output and answer, optional is input, "
                f"found {', '.join(map(str, row)) or '(no fields)'}"
            )
        text_field(row, field, where)
    given = row.get("input")
    # The hub's columnar format turns an absent optional field into None.
    if given is not None and not isinstance(given, str):
        raise UserError(f"{where}: field 'input' must be a string, found {json_type(given)}")
    return Record(row["instruction"], row["output"], row["answer"], given or "")


def require_text(value: str, where: str, field: str) -> None:
    """Refuse half of a surrogate pair, which JSON can hold (\\ud800) and no tokenizer takes.

    Raises:
        UserError: names the record and the field.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds {value[error.start]!r}, which is no character but half of one"
        ) from error


def json_type(value: Any) -> str:
    """A JSON value's type in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
