"""What is wrong with a sweep's records: counted before anything is trained, told in the plan, refused above a share.

Nothing is changed here. A record that is cut, repeated or empty stays in the training set, so that a plan's step counts
follow from the number of records alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beamplatform.data.examples import Example, tokenise
from beamplatform.data.records import Record
from beamplatform.data.splits import TrainingRecords, count_unscorable
from beamplatform.errors import UserError

if TYPE_CHECKING:
    from beamplatform.sections import DataSection

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
        for kind, count, of, words in self._counts(data):
            if of and count / of > getattr(data.tolerated, kind):
                raise UserError(_refusal(kind, words, count / of, data, _REMEDIES[kind](self)))

    def lines(self, data: DataSection) -> Iterator[str]:
        """What was counted, in words; nothing where all is well."""
        for *_, count, _of, words in self._counts(data):
            if count:
                yield f"{words}."

    def _counts(self, data: DataSection) -> Iterator[tuple[str, int, int, str]]:
        """(key of `data.tolerated`, count, of how many, the sentence)."""
        of = f"of {self.records} training and validation records"
        looked_at = of if self.tokenised == self.records else f"of {self.tokenised} records, drawn from {self.records},"
        yield (
            "without_targets", self.without_targets, self.tokenised,
            f"{self.without_targets} {looked_at} have no token that the loss counts: their prompt fills "
            f"data.max_length ({data.max_length} tokens)",
        )  # fmt: skip
        yield (
            "cut", self.cut, self.tokenised,
            f"{self.cut} {looked_at} are cut at data.max_length ({data.max_length} tokens; the longest has "
            f"{self.longest}) and lose their end of sequence",
        )  # fmt: skip
        yield "duplicates", self.duplicates, self.records, f"{self.duplicates} {of} repeat an earlier one"
        yield "empty", self.empty, self.records, f"{self.empty} {of} have a blank instruction or output"
        yield (
            "validation_trained", self.validation_trained, self.validation,
            f"{self.validation_trained} of {self.validation} validation records ask what is also trained on",
        )  # fmt: skip
        yield (
            "test_questions", self.test_questions, self.records,
            f"{self.test_questions} {of} ask a question of the test sets",
        )  # fmt: skip
        for place, (count, records) in self.unknown_answers.items():
            yield "unknown_answers", count, records, _unknown(place, count, records)


_REMEDIES: dict[str, Callable[[Quality], str]] = {
    "without_targets": lambda found: f"raise data.max_length ({found.enough} holds 99 % of the records)",
    "cut": lambda found: f"raise data.max_length ({found.enough} holds 99 % of the records)",
    "duplicates": lambda _: "leave the repeated records out of the data",
    "empty": lambda _: "leave the blank records out of the data",
    "validation_trained": lambda _: "leave the repeated questions out of the data",
    "test_questions": lambda _: "leave the tests' questions out of the training data",
    "unknown_answers": lambda _: "correct the data",
}


def check_answers(tasks: Sequence[str], test: Mapping[str, Sequence[Record]], data: DataSection) -> list[str]:
    """What there is to tell of test records' gold answers that no model can be right with.

    Raises:
        UserError: they are more than `data.tolerated.unknown_answers` allows.
    """
    found = count_unscorable(tasks, test).items()
    told = [(_unknown(f"{task}, test", *counts), counts) for task, counts in found if counts[0]]
    for sentence, (count, of) in told:
        if count / of > data.tolerated.unknown_answers:
            raise UserError(_refusal("unknown_answers", sentence, count / of, data, "correct the data"))
    return [f"{sentence}." for sentence, _ in told]


def _unknown(place: str, count: int, records: int) -> str:
    return f"{count} of {records} gold answers of {place} are none that the task can score"


def _refusal(kind: str, sentence: str, share: float, data: DataSection, remedy: str) -> str:
    limit = getattr(data.tolerated, kind)
    return (
        f"{sentence}, more than data.tolerated.{kind} ({limit:g} of them) allows; {remedy}, or accept it with "
        f"--set data.tolerated.{kind}={_rounded_up(share)}"
    )


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
            **{f"{task}, training": counts for task, counts in records.unscorable.items()},
            **{f"{task}, test": counts for task, counts in count_unscorable(tasks, test).items()},
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
