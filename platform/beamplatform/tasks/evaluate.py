"""Score one model on several tasks, keeping every prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from beamplatform.data.records import Record
from beamplatform.errors import UserError
from beamplatform.inference.engine import Engine, Export
from beamplatform.tasks.predictions import Prediction, document_hash
from beamplatform.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """The outcome for one model.

    Attributes:
        scores: accuracy in 0..1, by task.
        average: the mean of the scores, every task counting the same whatever its size.
        predictions: by task, in the order of its records.
    """

    scores: dict[str, float]
    average: float
    predictions: dict[str, list[Prediction]]

    def standard_error(self, task: str) -> float:
        """Of a share p of n independent right or wrong answers: sqrt(p (1 - p) / n)."""
        score = self.scores[task]
        return math.sqrt(score * (1 - score) / len(self.predictions[task]))


@dataclass(frozen=True)
class _Question:
    task: Task
    index: int
    record: Record
    prompt: str

    @property
    def generation(self) -> tuple[int, tuple[str, ...]]:
        """What has to be the same for questions that are generated together."""
        return self.task.max_new_tokens, self.task.stop


def evaluate(
    engine: Engine,
    export: Export | None,
    tasks: Sequence[Task],
    records: Mapping[str, list[Record]],
    *,
    beams: int = 1,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Ask every record of every task and score the answers.

    The questions of all tasks share batches, longest first: prompts of one length waste no padding, and a
    batch that does not fit in memory is the first one, not the last.

    Args:
        engine: generates the completions.
        export: the fine-tuned weights; None scores the base model.
        tasks: what to score.
        records: by task name, at least one record each.
        beams: 1 is greedy; 4 is the setting of the published commonsense results.
        on_progress: called after every batch, once for each task in it, with the task's name, how many of its
            questions are answered and how many there are.

    Raises:
        UserError: no tasks, a task twice, or a task without records.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise UserError(f"evaluation needs one or more different tasks, got {', '.join(names) or 'none'}")
    for name in names:
        if not records.get(name):
            raise UserError(f"no records to evaluate task {name!r} on")

    predictions: dict[str, dict[int, Prediction]] = {name: {} for name in names}
    for batch in _batches(tasks, records, engine.batch_size):
        max_new_tokens, stop = batch[0].generation
        completions = engine.generate(
            [question.prompt for question in batch],
            export=export,
            max_new_tokens=max_new_tokens,
            beams=beams,
            stop=stop,
        )
        for question, completion in zip(batch, completions, strict=True):
            predictions[question.task.name][question.index] = _judge(question, completion)
        if on_progress:
            for name in dict.fromkeys(question.task.name for question in batch):
                on_progress(name, len(predictions[name]), len(records[name]))

    ordered = {name: [by_index[i] for i in sorted(by_index)] for name, by_index in predictions.items()}
    scores = {name: sum(p.correct for p in found) / len(found) for name, found in ordered.items()}
    return Evaluation(scores, sum(scores.values()) / len(scores), ordered)


def _batches(tasks: Sequence[Task], records: Mapping[str, list[Record]], size: int) -> Iterator[list[_Question]]:
    questions = [
        _Question(task, index, record, task.prompt(record))
        for task in tasks
        for index, record in enumerate(records[task.name])
    ]
    # Characters stand in for tokens: close enough to sort by, and no tokenizer is needed here.
    questions.sort(key=lambda question: (question.generation, len(question.prompt)), reverse=True)
    for _, same in groupby(questions, key=lambda question: question.generation):
        group = list(same)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _judge(question: _Question, completion: str) -> Prediction:
    extracted = question.task.extract(completion)
    correct = extracted is not None and question.task.correct(extracted, question.record)
    document = document_hash(question.record)
    return Prediction(document, question.prompt, completion, extracted, question.record.answer, correct)
