"""Computes scores and their standard errors from judged answers."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from beamplatform.evaluation.predictions import Prediction, by_question

_RESAMPLES = 1000


@dataclass(frozen=True)
class Evaluation:
    """The predictions and scores of one model.

    Attributes:
        predictions: task -> its predictions, in the order of its records. All samples of a record stand together.
        notes: task -> what a reader of its score must know, such as another comparison or version of the data.
    """

    predictions: dict[str, list[Prediction]]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """Task -> accuracy in 0..1; for sampled answers it is the mean share of correct ones, which is pass@1."""
        return {task: self._score(task) for task in self.predictions}

    @property
    def average(self) -> float:
        """Mean of the tasks' scores, in which every task has the same weight, whatever its size."""
        return statistics.fmean(self.scores.values())

    def questions(self, task: str) -> int:
        return len(self._right(task))

    def unanswered(self, task: str) -> float:
        """Return the share of completions in which no answer was found, 0..1."""
        return statistics.fmean(answer.extracted is None for answer in self.predictions[task])

    def pass_at(self, task: str, k: int) -> float:
        """Return the estimated pass@k, averaged over the questions (Chen et al. 2021, equation 1).

        pass@k is the probability that at least one of k sampled answers is correct.
        """
        return statistics.fmean(pass_at(len(right), sum(right), k) for right in self._right(task))

    def standard_error(self, task: str, k: int = 1) -> float:
        """Return the standard error of the task's score, or of its pass@k if answers are sampled.

        With one answer per question it is binomial, sqrt(p (1 - p) / n), else it is bootstrapped.
        """
        right = self._right(task)
        if all(len(answers) == 1 for answers in right):
            score = self._score(task)
            return math.sqrt(score * (1 - score) / len(right))
        return bootstrap_error([pass_at(len(answers), sum(answers), k) for answers in right])

    @property
    def average_error(self) -> float:
        """Standard error of the average; the errors of the tasks are independent."""
        errors = [self.standard_error(task) for task in self.predictions]
        return math.sqrt(sum(error**2 for error in errors)) / len(errors)

    def metrics(self, pass_at: Sequence[int] = ()) -> dict[str, float]:
        """Return the metrics for MLflow: eval/TASK, standard_error/TASK, pass_at_K/TASK, and the tasks' average."""
        values = {"eval/average": self.average, "standard_error/average": self.average_error}
        for task, score in self.scores.items():
            values |= {f"eval/{task}": score, f"standard_error/{task}": self.standard_error(task)}
            for k in pass_at:
                values[f"pass_at_{k}/{task}"] = self.pass_at(task, k)
                values[f"standard_error/{task}/pass_at_{k}"] = self.standard_error(task, k)
        return values

    def _right(self, task: str) -> list[list[bool]]:
        """Return for each question whether each of its answers is correct."""
        return [[answer.correct for answer in answers] for answers in by_question(self.predictions[task])]

    def _score(self, task: str) -> float:
        return statistics.fmean(sum(answers) / len(answers) for answers in self._right(task))


def pass_at(n: int, c: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the probability that k of n answers include one of the c correct ones.

    Raises:
        ValueError: k is above n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap_error(values: Sequence[float], *, seed: int = 0) -> float:
    """Return the standard error of a mean: the standard deviation of the means of 1000 resamples with replacement."""
    draws = random.Random(seed)
    means = [statistics.fmean(draws.choices(values, k=len(values))) for _ in range(_RESAMPLES)]
    return statistics.pstdev(means)
