"""What a task is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from beamplatform.errors import UserError, first_line
from beamplatform.tasks.record import Record, RowParser, parse_record


def equals_answer(extracted: str, record: Record) -> bool:
    """Whether the extracted answer is, character for character, the record's."""
    return extracted == record.answer


def _any_answer(record: Record) -> bool:
    """Most tasks of the user's own say nothing about their gold answers."""
    return True


def _nothing() -> None:
    """What most tasks require."""


def as_published(records: Sequence[Record]) -> str:
    """What most tasks note about their records."""
    return ""


@dataclass(frozen=True)
class Option:
    """Another way to score a task.

    Attributes:
        note: what a reader of the score must know.
        changes: the task's fields with it.
    """

    note: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """How a benchmark asks and how it scores.

    Attributes:
        name: the task's name in suites, in tables and as a data folder.
        prompt: the text a model is asked with.
        max_new_tokens: the longest completion.
        extract: the answer a completion gives, None when it gives none (which is scored as wrong).
        extract_for: takes the place of `extract` where the answer can only be found with the record at hand.
        correct: compares an extracted answer with the record it belongs to.
        stop: texts that end a completion, themselves left out of it.
        requires: called before a model is loaded; raises UserError where the task cannot be scored on this machine.
        files: where a data folder has its records, with {name} and {split} to be filled in: a JSON list, or JSON lines
            (.jsonl, .jsonl.gz).
        parse: makes a record of a row of such a file, None to leave it out; the second argument names it in messages.
        scorable: whether a completion could be right with a record's gold answer; a plan counts those that are not.
        note: what a reader of the score must know about these records; "" where they are as published.
        options: other ways to score it, by name.
        chosen: the options in force.
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
        """This task with those of its options that are named."""
        chosen = tuple(name for name in self.options if name in names)
        changes = {key: value for name in chosen for key, value in self.options[name].changes.items()}
        return replace(self, chosen=chosen, **changes)

    def question(self, record: Record) -> str:
        """The text that a model is asked with.

        Raises:
            UserError: the task's own `prompt` fails, or returns no text.
        """
        text = self._own("prompt", record)
        if not isinstance(text, str):
            raise UserError(f"task {self.name}: its prompt() must return a text, found {type(text).__name__}")
        return text

    def can_score(self, record: Record) -> bool:
        """What `scorable` says.

        Raises:
            UserError: the task's own `scorable` fails.
        """
        return bool(self._own("scorable", record))

    def check_machine(self) -> None:
        """What `requires` does.

        Raises:
            UserError: the task cannot be scored on this machine, or its own `requires` fails.
        """
        self._own("requires")

    def answer_in(self, completion: str, record: Record) -> str | None:
        """The answer that a completion gives to a record's question; None where it gives none."""
        return self.extract(completion) if self.extract_for is None else self.extract_for(completion, record)

    def notes(self, records: Sequence[Record]) -> str:
        """What a reader of the score must know about its records and the options chosen; "" for nothing.

        Raises:
            UserError: the task's own `note` fails, or returns no text.
        """
        own = self._own("note", records)
        if not isinstance(own, str):
            raise UserError(f"task {self.name}: its note() must return a text, found {type(own).__name__}")
        return "; ".join(filter(None, [own, *(self.options[name].note for name in self.chosen)]))

    def _own(self, name: str, *arguments: Any) -> Any:
        """What one of the task's functions returns, which may be in a file of the user's own.

        Raises:
            UserError: the function says so itself, or it fails or exits; then the function is named, and its record.
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
