"""Counts defects in a sweep's records before anything is trained.

The plan reports the counts, and refuses the sweep if the share of a defect exceeds its limit in `data.tolerated`.

Nothing is changed here. A record that is cut, repeated or empty stays in the training set, so that a plan's step counts
follow from the number of records alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beamplatform.data.examples import Example, tokenise
from beamplatform.data.splits import TrainingRecords, count_unscorable
from beamplatform.errors import UserError
from beamplatform.tasks.record import Record

if TYPE_CHECKING:
    from beamplatform.config.sections import DataSection

Question = tuple[str, str]

TOKENISED = 20_000
"""Largest number of records whose tokens are counted; counting 150,000 would take a minute or two.

Records are in random order, so the first ones are a random sample.
"""

_CHUNK = 5000
"""Number of records tokenised at once. Their tokens are counted and then discarded."""


@dataclass(frozen=True)
class Quality:
    """Counts over the records of a sweep.

    Attributes:
        records: training and validation records together.
        validation: validation records.
        tokenised: records that were tokenised (all, or a sample). The next six counts are over these only.
        longest: tokens of the longest record.
        enough: the smallest number of tokens that 99 % of the records fit into.
        targets: tokens of training records that count in the loss.
        validation_targets: tokens of validation records that count in the loss.
        cut: records longer than `max_length`. They lose their end, including the end-of-sequence token.
        without_targets: records without a token that counts in the loss, because the prompt alone fills `max_length`.
        duplicates: records that are equal to an earlier one.
        empty: records whose instruction or output is blank.
        validation_trained: validation records whose question is also in a training record.
        test_questions: training and validation records whose question is also in a test record.
        unknown_answers: "task, split" -> (records whose gold answer the task cannot score, all records).
    """

    records: int
    validation: int
    tokenised: int
    longest: int
    enough: int
    targets: int
    validation_targets: int
    cut: int
    without_targets: int
    duplicates: int
    empty: int
    validation_trained: int
    test_questions: int
    unknown_answers: Mapping[str, Sequence[int]]

    def check(self, data: DataSection) -> None:
        """Refuse records that teach nothing, and records with more defects than `data.tolerated` allows.

        Raises:
            UserError: the records are refused; the message says what was counted and what to do about it.
        """
        for split, targets in (("training", self.targets), ("validation", self.validation_targets)):
            if targets == 0:
                raise UserError(
                    f"no {split} record has a token that the loss counts: every prompt alone fills data.max_length "
                    f"({data.max_length} tokens); the longest record has {self.longest}, and {self.enough} would hold "
                    f"99 % of them: --set data.max_length={self.enough}"
                )
        for count in self._counts(data):
            count.check(data)

    def lines(self, data: DataSection) -> Iterator[str]:
        """Yield one sentence for each defect that some records have."""
        for count in self._counts(data):
            yield from count.lines()

    def _counts(self, data: DataSection) -> Iterator[_Count]:
        of = f"of {self.records} training and validation records"
        looked_at = of if self.tokenised == self.records else f"of {self.tokenised} records, drawn from {self.records},"
        longer = f"raise data.max_length ({self.enough} holds 99 % of the records)"
        yield _Count(
            "without_targets", self.without_targets, self.tokenised,
            f"{looked_at} have no token that the loss counts: their prompt fills data.max_length ({data.max_length} "
            "tokens)",
            longer,
        )  # fmt: skip
        yield _Count(
            "cut", self.cut, self.tokenised,
            f"{looked_at} are cut at data.max_length ({data.max_length} tokens; the longest has {self.longest}) and "
            "lose their end of sequence",
            longer,
        )  # fmt: skip
        yield _Count(
            "duplicates", self.duplicates, self.records,
            f"{of} repeat an earlier one", "leave the repeated records out of the data",
        )  # fmt: skip
        yield _Count(
            "empty", self.empty, self.records,
            f"{of} have a blank instruction or output", "leave the blank records out of the data",
        )  # fmt: skip
        yield _Count(
            "validation_trained", self.validation_trained, self.validation,
            f"of {self.validation} validation records have a question that is also trained on",
            "leave the repeated questions out of the data",
        )  # fmt: skip
        yield _Count(
            "test_questions", self.test_questions, self.records,
            f"{of} ask a question of the test sets", "leave the tests' questions out of the training data",
        )  # fmt: skip
        yield from _unknown_answers(self.unknown_answers)


@dataclass(frozen=True)
class _Count:
    """The number of records that have one defect.

    Attributes:
        kind: the key of the defect in `data.tolerated`.
        number: number of records that have the defect.
        of: number of records that were examined.
        words: the rest of the sentence that begins with the number.
        remedy: what the user can do about it.
    """

    kind: str
    number: int
    of: int
    words: str
    remedy: str

    def check(self, data: DataSection) -> None:
        """Raise UserError if the share of these records is above the limit in `data.tolerated`."""
        limit, share = getattr(data.tolerated, self.kind), self.number / max(self.of, 1)
        if share > limit:
            raise UserError(
                f"{self.number} {self.words}, more than data.tolerated.{self.kind} ({limit:g} of them) allows; "
                f"{self.remedy}, or accept it with --set data.tolerated.{self.kind}={_rounded_up(share)}"
            )

    def lines(self) -> Iterator[str]:
        """Yield the sentence, unless no record has the defect."""
        if self.number:
            yield f"{self.number} {self.words}."


def check_answers(tasks: Sequence[str], test: Mapping[str, Sequence[Record]], data: DataSection) -> list[str]:
    """Return one warning for each task with gold answers that no completion can match.

    Raises:
        UserError: the share of such answers is above `data.tolerated.unknown_answers`.
    """
    counts = _unknown_answers(_by_split(count_unscorable(tasks, test), "test"))
    for count in counts:
        count.check(data)
    return [line for count in counts for line in count.lines()]


def _unknown_answers(unknown: Mapping[str, Sequence[int]]) -> list[_Count]:
    """Return one count for each entry of `Quality.unknown_answers`."""
    return [
        _Count("unknown_answers", number, of, f"of {of} gold answers of {origin} cannot be scored by the task",
               "correct the data")
        for origin, (number, of) in unknown.items()
    ]  # fmt: skip


def _by_split(counts: Mapping[str, tuple[int, int]], split: str) -> dict[str, tuple[int, int]]:
    return {f"{task}, {split}": numbers for task, numbers in counts.items()}


def _rounded_up(share: float) -> str:
    return f"{min(1.0, -(-share * 100 // 1) / 100):g}"


def quality(
    tasks: Sequence[str],
    records: TrainingRecords,
    test: Mapping[str, Sequence[Record]],
    tokenizer: Any,
    data: DataSection,
) -> Quality:
    """Count the defects of a sweep's records.

    Args:
        tasks: names or files of the tasks, as in the suite.
        records: the training and validation records.
        test: task -> its test records.
        tokenizer: the base model's tokenizer.
        data: the settings that say how records become tokens.

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """
    everything = [*records.train, *records.validation]
    validated = records.validation[: TOKENISED // 2]
    drawn = records.train[: TOKENISED - len(validated)]
    lengths, targets = [], []
    for length, counted in _tokens([*drawn, *validated], tokenizer, data):
        lengths.append(length)
        targets.append(counted)
    train_questions = {_question(record) for record in records.train}
    test_questions = {_question(record) for part in test.values() for record in part}
    ordered = sorted(lengths)
    return Quality(
        records=len(everything),
        validation=len(records.validation),
        tokenised=len(lengths),
        longest=ordered[-1],
        enough=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        targets=sum(targets[: len(drawn)]),
        validation_targets=sum(targets[len(drawn) :]),
        cut=sum(length > data.max_length for length in lengths),
        without_targets=targets.count(0),
        duplicates=len(everything) - len(set(everything)),
        empty=sum(not record.instruction.strip() or not record.output.strip() for record in everything),
        validation_trained=sum(_question(record) in train_questions for record in records.validation),
        test_questions=sum(_question(record) in test_questions for record in everything),
        unknown_answers={
            **_by_split(records.unscorable, "training"),
            **_by_split(count_unscorable(tasks, test), "test"),
        },
    )


def _tokens(records: Sequence[Record], tokenizer: Any, data: DataSection) -> Iterator[tuple[int, int]]:
    """Yield for every record (tokens before it is cut, tokens that count in the loss after it is cut)."""
    for start in range(0, len(records), _CHUNK):
        whole = tokenise(records[start : start + _CHUNK], tokenizer, max_length=2**62, loss_on=data.loss_on)
        for example in whole:
            cut = Example(example.ids[: data.max_length], example.labels[: data.max_length])
            yield len(example.ids), cut.targets


def _question(record: Record) -> Question:
    """Return instruction and input with every run of white space replaced by one space."""
    return " ".join(record.instruction.split()), " ".join(record.input.split())
