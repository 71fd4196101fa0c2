"""Scores models on several tasks, and keeps every prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from beamplatform.errors import UserError
from beamplatform.evaluation.answer_store import StoredAnswers
from beamplatform.evaluation.predictions import Prediction, document_hash
from beamplatform.evaluation.scores import Evaluation
from beamplatform.inference.applied_check import ExportError
from beamplatform.inference.engine import Engine, Export, Generation, Request
from beamplatform.tasks.record import Record
from beamplatform.tasks.task import Task


@dataclass(frozen=True)
class Settings:
    """Generation settings that all tasks share; each task has its own length and stop texts (see `Generation`)."""

    beams: int = 1
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def generation(self, task: Task) -> Generation:
        return Generation(
            max_new_tokens=task.max_new_tokens,
            beams=self.beams,
            stop=task.stop,
            samples=self.samples,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Event:
    """The progress of one model in an evaluation.

    Attributes:
        index: position of the model in the given list.
        answered: number of its questions that are answered, including those that an earlier evaluation answered.
        outcome: its scores, or the reason why it cannot be scored; None while it is being asked.
    """

    index: int
    answered: int = 0
    outcome: Evaluation | UserError | None = None


AnswersOf = Callable[[Export | None, Generation], StoredAnswers]
"""Returns the stored answers of an exported model (None: the base model) for these generation settings."""


def evaluate_all(
    engine: Engine,
    exports: Sequence[Export | None],
    tasks: Sequence[Task],
    records: Mapping[str, list[Record]],
    *,
    settings: Settings = Settings(),
    answers: AnswersOf | None = None,
) -> Iterator[Event]:
    """Ask every model every question, and yield progress and scores.

    Args:
        engine: generates the completions.
        exports: different models, None for the base model. Tasks are grouped by their generation settings, and all
            models answer one group before the next group begins. So pass each merged model in a separate call, or
            the engine loads it again for each group.
        tasks: the tasks to score.
        records: task name -> its records, at least one each.
        settings: the generation settings that all tasks share.
        answers: finds the stored answers, to which new answers are added; None = nothing is stored.

    Yields:
        An event for every answer, and for every model's outcome as soon as it is known.

    Raises:
        UserError: there is no task, a task or a model is given twice, a task has no records, or a question cannot be
            asked of any model.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise UserError(f"evaluation needs one or more different tasks, got {', '.join(names) or 'none'}")
    for name in names:
        if not records.get(name):
            raise UserError(f"no records to evaluate task {name!r} on")
    if len(set(exports)) < len(exports):
        raise UserError("the models to evaluate must differ")
    # Threads are for programs, whose judging waits for a sandbox. Other answers are judged faster than a thread starts.
    judges = ThreadPoolExecutor(os.cpu_count())
    models = [_Model(index, export, tasks, records, judges) for index, export in enumerate(exports)]
    kinds: dict[Generation, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(settings.generation(task), []).append(task)
    try:
        for generation, tasks_of_kind in kinds.items():
            active = [model for model in models if not model.failed]
            stored = {
                model.index: answers(model.export, generation) if answers else StoredAnswers(None, {})
                for model in active
            }
            try:
                yield from _ask(engine, active, tasks_of_kind, generation, stored)
            finally:
                for opened_answers in stored.values():
                    opened_answers.close()
    finally:
        judges.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Question:
    model: _Model
    task: Task
    number: int
    record: Record
    prompt: str


@dataclass
class _Model:
    """One model, and its answers so far in an evaluation."""

    index: int
    export: Export | None
    tasks: Sequence[Task]
    records: Mapping[str, list[Record]]
    judges: ThreadPoolExecutor
    failed: bool = False
    judged: dict[tuple[str, int], Future[list[Prediction]]] = field(default_factory=dict)
    unjudged: list[tuple[str, str]] = field(default_factory=list)

    def questions(self, tasks: Sequence[Task]) -> list[_Question]:
        return [
            _Question(self, task, number, record, task.question(record))
            for task in tasks
            for number, record in enumerate(self.records[task.name])
        ]

    def answer(self, question: _Question, completions: list[str]) -> None:
        self.judged[question.task.name, question.number] = self.judges.submit(_judge, question, completions)

    def event(self) -> Event:
        """Return the progress of the model, with its scores if all questions are answered."""
        done = len(self.judged) == sum(len(self.records[task.name]) for task in self.tasks)
        return Event(self.index, len(self.judged), self._evaluation() if done else None)

    def _evaluation(self) -> Evaluation:
        predictions = {
            task.name: [
                prediction
                for number in range(len(self.records[task.name]))
                for prediction in self.judged[task.name, number].result()
            ]
            for task in self.tasks
        }
        notes = {task.name: task.notes(self.records[task.name]) for task in self.tasks}
        for name in notes:
            errors = [error for task, error in self.unjudged if task == name]
            if errors:
                text = f"{len(errors)} answers counted as wrong because judging them failed, first with {errors[0]}"
                notes[name] = "; ".join(filter(None, [notes[name], text]))
        return Evaluation(predictions, {name: note for name, note in notes.items() if note})


def _ask(
    engine: Engine,
    models: Sequence[_Model],
    tasks: Sequence[Task],
    generation: Generation,
    kept: Mapping[int, StoredAnswers],
) -> Iterator[Event]:
    """Ask the models all questions of tasks that have equal generation settings."""
    questions = []
    for model in models:
        for question in model.questions(tasks):
            stored = kept[model.index].get(question.prompt)
            if stored is None:
                questions.append(question)
            else:
                model.answer(question, stored)
        yield model.event()
    while questions := [question for question in questions if _is_open(question)]:
        requests = [Request(question.prompt, question.model.export) for question in questions]
        try:
            for index, completions in engine.generate(requests, generation):
                question = questions[index]
                model = question.model
                kept[model.index].add(question.prompt, completions)
                model.answer(question, completions)
                yield model.event()
        except ExportError as error:  # the other models go on without it
            culprit = next(model for model in models if model.export == error.export)
            culprit.failed = True
            yield Event(culprit.index, len(culprit.judged), error)


def _is_open(question: _Question) -> bool:
    return not question.model.failed and (question.task.name, question.number) not in question.model.judged


def _judge(question: _Question, completions: list[str]) -> list[Prediction]:
    """Return one prediction for each completion.

    If a task's own code fails on a completion, the completion counts as wrong. A note beside the score says how often
    that happened.

    Raises:
        UserError: answers cannot be judged on this machine.
    """
    predictions, document = [], document_hash(question.record)
    for sample, completion in enumerate(completions):
        extracted, correct = None, False
        try:
            extracted = question.task.answer_in(completion, question.record)
            if extracted is not None and not isinstance(extracted, str):
                raise TypeError(f"extract() must return a text or None, found {type(extracted).__name__}")
            correct = extracted is not None and question.task.correct(extracted, question.record)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            question.model.unjudged.append((question.task.name, f"{type(error).__name__}: {error}"[:200]))
        gold = question.record.answer
        predictions.append(Prediction(document, question.prompt, completion, extracted, gold, correct, sample))
    return predictions
