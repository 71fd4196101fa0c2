"""Defines what a task is: how it asks its questions and how it scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from beamplatform.errors import UserError, first_line
from beamplatform.tasks.record import Record, RowParser, parse_record


def equals_answer(extracted: str, record: Record) -> bool:
    """Whether the extracted answer equals the record's, character for character."""
    return extracted == record.answer


def _any_answer(record: Record) -> bool:
    """Accept every gold answer, for tasks that do not say which they can score."""
    return True


def _nothing() -> None:
    """Require nothing of the machine, as most tasks do."""


def as_published(records: Sequence[Record]) -> str:
    """Return an empty note, for records that are as published."""
    return ""


@dataclass(frozen=True)
class Option:
    """Another way to score a task.

    Attributes:
        note: what a reader of the score must know.
        changes: the fields of the task that the option replaces, with their new values.
    """

    note: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """How a benchmark asks and how it scores.

    Attributes:
        name: the task's name in suites, in tables and as a data folder.
        prompt: returns the text that a model is asked with.
        max_new_tokens: largest number of tokens in a completion.
        extract: returns the answer in a completion, or None if there is none (which is scored as wrong).
        extract_for: replaces `extract` for tasks that need the record to find the answer.
        correct: says whether an extracted answer is correct for its record.
        stop: texts that end a completion. They are not part of the completion.
        requires: called before a model is loaded; raises UserError if the task cannot be scored on this machine.
        files: path of the task's records below a data folder, with {name} and {split} to be filled in; a JSON list, or
            JSON lines (.jsonl, .jsonl.gz).
        parse: turns a row of such a file into a record, or into None to leave it out. The second argument names the row
            in messages.
        scorable: says whether any completion could match a record's gold answer. A plan counts the other records.
        note: returns what a reader of the score must know about these records; "" if they are as published.
        options: other ways to score the task, by name.
        chosen: names of the options in force.
    """

    name: str
    prompt: Callable[[Record], str]
    max_new_tokens: int
    extract: Callable[[str], str | None]
    extract_for: Callable[[str, Record], str | None] | None = None
    correct: Callable[[str, Record], bool] = equals_answer
    stop: tuple[str, ...] = ()
    requires: Callable[[], object] = _nothing
    files: str = "{name}/{split}.json"
    parse: RowParser = parse_record
    scorable: Callable[[Record], bool] = _any_answer
    note: Callable[[Sequence[Record]], str] = as_published
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    chosen: tuple[str, ...] = ()

    def with_options(self, names: Collection[str]) -> Task:
        """Return this task with the named options in force; names of options that it does not have are ignored."""
        chosen = tuple(name for name in self.options if name in names)
        changes = {key: value for name in chosen for key, value in self.options[name].changes.items()}
        return replace(self, chosen=chosen, **changes)

    def question(self, record: Record) -> str:
        """Return the text that a model is asked with.

        Raises:
            UserError: the task's own `prompt` fails, or returns no text.
        """
        text = self._own("prompt", record)
        if not isinstance(text, str):
            raise UserError(f"task {self.name}: its prompt() must return a text, found {type(text).__name__}")
        return text

    def can_score(self, record: Record) -> bool:
        """Return whether any completion could match the record's gold answer.

        Raises:
            UserError: the task's own `scorable` fails.
        """
        return bool(self._own("scorable", record))

    def check_machine(self) -> None:
        """Check that the task can be scored on this machine.

        Raises:
            UserError: the task cannot be scored on this machine, or its own `requires` fails.
        """
        self._own("requires")

    def answer_in(self, completion: str, record: Record) -> str | None:
        """Return the answer in a completion of the record's question; None if there is none."""
        return self.extract(completion) if self.extract_for is None else self.extract_for(completion, record)

    def notes(self, records: Sequence[Record]) -> str:
        """Return what a reader of the score must know about the records and the chosen options; "" if nothing.

        Raises:
            UserError: the task's own `note` fails, or returns no text.
        """
        note = self._own("note", records)
        if not isinstance(note, str):
            raise UserError(f"task {self.name}: its note() must return a text, found {type(note).__name__}")
        return "; ".join(filter(None, [note, *(self.options[name].note for name in self.chosen)]))

    def _own(self, name: str, *arguments: Any) -> Any:
        """Call one of the task's functions, which may come from a user's file, and return its result.

        Raises:
            UserError: the function raises a `UserError`, or it fails in another way or exits. In the last two cases the
                message names the function and the record.
        """
        try:
            return getattr(self, name)(*arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            why = f"task {self.name}: its {name}() fails ({type(error).__name__}: {first_line(error)})"
            records = [argument for argument in arguments if isinstance(argument, Record)]
            where = "".join(f" on the record that begins {record.instruction[:60]!r}" for record in records)
            raise UserError(why + where) from error
