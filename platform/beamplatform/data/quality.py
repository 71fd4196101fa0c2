"""What is wrong with a sweep's records: counted before anything is trained, told in the plan, refused above a share.

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
"""Records whose tokens are counted at the most: of 150,000 it would take a minute or two. They are in random order."""

_CHUNK = 5000
"""Records tokenised at once; their tokens are counted and forgotten."""


@dataclass(frozen=True)
class Quality:
    """Counts over the records of a sweep.

    Attributes:
        records: that are trained or validated on.
        validation: of these, validated on.
        tokenised: of these, turned into tokens, which the next six counts are over: all, or a sample.
        longest: tokens of the longest record.
        enough: the smallest number of tokens that 99 % of the records fit into.
        targets: tokens that the loss counts, in training records.
        validation_targets: tokens that the loss counts, in validation records.
        cut: records longer than `max_length`, which lose their end and with it their end of sequence.
        without_targets: records of which the loss counts no token, because the prompt alone fills `max_length`.
        duplicates: records that are equal to an earlier one.
        empty: records whose instruction or output is blank.
        validation_trained: validation records whose question is also trained on.
        test_questions: records, of training and validation, whose question is asked in a test.
        unknown_answers: "task, split" -> (records whose gold answer the task cannot score, records in all).
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
        """Refuse records that teach nothing, or of which more are unfit than `data.tolerated` allows.

        Raises:
            UserError: what was counted, and what would be right.
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
        """What was counted, in words; nothing where all is well."""
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
            f"of {self.validation} validation records ask what is also trained on",
            "leave the repeated questions out of the data",
        )  # fmt: skip
        yield _Count(
            "test_questions", self.test_questions, self.records,
            f"{of} ask a question of the test sets", "leave the tests' questions out of the training data",
        )  # fmt: skip
        yield from _unknown_answers(self.unknown_answers)


@dataclass(frozen=True)
class _Count:
    """Records that are unfit in one way.

    Attributes:
        kind: their key in `data.tolerated`.
        number: how many.
        of: how many were looked at.
        words: the rest of the sentence that begins with the number.
        remedy: what would be right.
    """

    kind: str
    number: int
    of: int
    words: str
    remedy: str

    def check(self, data: DataSection) -> None:
        """Raises UserError where they are more than `data.tolerated` allows."""
        limit, share = getattr(data.tolerated, self.kind), self.number / max(self.of, 1)
        if share > limit:
            raise UserError(
                f"{self.number} {self.words}, more than data.tolerated.{self.kind} ({limit:g} of them) allows; "
                f"{self.remedy}, or accept it with --set data.tolerated.{self.kind}={_rounded_up(share)}"
            )

    def lines(self) -> Iterator[str]:
        """The sentence; nothing where there are none."""
        if self.number:
            yield f"{self.number} {self.words}."


def check_answers(tasks: Sequence[str], test: Mapping[str, Sequence[Record]], data: DataSection) -> list[str]:
    """What there is to tell of test records' gold answers that no model can be right with.

    Raises:
        UserError: they are more than `data.tolerated.unknown_answers` allows.
    """
    counts = _unknown_answers(_by_split(count_unscorable(tasks, test), "test"))
    for count in counts:
        count.check(data)
    return [line for count in counts for line in count.lines()]


def _unknown_answers(found: Mapping[str, Sequence[int]]) -> list[_Count]:
    """One count for each entry of `Quality.unknown_answers`."""
    return [
        _Count("unknown_answers", number, of, f"of {of} gold answers of {place} are none that the task can score",
               "correct the data")
        for place, (number, of) in found.items()
    ]  # fmt: skip


def _by_split(counts: Mapping[str, tuple[int, int]], split: str) -> dict[str, tuple[int, int]]:
    return {f"{task}, {split}": found for task, found in counts.items()}


def _rounded_up(share: float) -> str:
    return f"{min(1.0, -(-share * 100 // 1) / 100):g}"


def quality(
    tasks: Sequence[str],
    records: TrainingRecords,
    test: Mapping[str, Sequence[Record]],
    tokenizer: Any,
    data: DataSection,
) -> Quality:
    """Count.

    Args:
        tasks: as the suite names them.
        records: what is trained and validated on.
        test: task -> its test records.
        tokenizer: the base model's.
        data: how records become tokens.

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
    """(tokens before any cut, tokens that the loss counts after it) of every record."""
    for start in range(0, len(records), _CHUNK):
        whole = tokenise(records[start : start + _CHUNK], tokenizer, max_length=2**62, loss_on=data.loss_on)
        for example in whole:
            cut = Example(example.ids[: data.max_length], example.labels[: data.max_length])
            yield len(example.ids), cut.targets


def _question(record: Record) -> Question:
    """What is asked, whatever the spaces around it."""
    return " ".join(record.instruction.split()), " ".join(record.input.split())
