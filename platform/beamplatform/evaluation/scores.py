"""From judged answers to scores and their errors."""

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
    """The outcome for one model.

    Attributes:
        predictions: by task, in the order of its records; where answers are sampled, all of a record's together.
        notes: task -> what a reader of its score must know (another way to compare, another version of the data).
    """

    predictions: dict[str, list[Prediction]]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy in 0..1, by task; of sampled answers the mean share that is right, which is pass@1."""
        return {task: self._score(task) for task in self.predictions}

    @property
    def average(self) -> float:
        """The mean of the scores, every task counting the same whatever its size."""
        return statistics.fmean(self.scores.values())

    def questions(self, task: str) -> int:
        return len(self._right(task))

    def unanswered(self, task: str) -> float:
        """The share of completions in which no answer was found, 0..1."""
        return statistics.fmean(answer.extracted is None for answer in self.predictions[task])

    def pass_at(self, task: str, k: int) -> float:
        """The mean estimate of the chance that one of k sampled answers is right (Chen et al. 2021, equation 1)."""
        return statistics.fmean(pass_at(len(right), sum(right), k) for right in self._right(task))

    def standard_error(self, task: str, k: int = 1) -> float:
        """Of the score: binomial, sqrt(p (1 - p) / n), for one answer per question, else bootstrapped."""
        right = self._right(task)
        if all(len(answers) == 1 for answers in right):
            score = self._score(task)
            return math.sqrt(score * (1 - score) / len(right))
        return bootstrap_error([pass_at(len(answers), sum(answers), k) for answers in right])

    @property
    def average_error(self) -> float:
        """Of the average: the tasks' errors are independent."""
        errors = [self.standard_error(task) for task in self.predictions]
        return math.sqrt(sum(error**2 for error in errors)) / len(errors)

    def metrics(self, pass_at: Sequence[int] = ()) -> dict[str, float]:
        """What MLflow keeps: eval/TASK, standard_error/TASK, pass_at_K/TASK, and the average of the tasks."""
        found = {"eval/average": self.average, "standard_error/average": self.average_error}
        for task, score in self.scores.items():
            found |= {f"eval/{task}": score, f"standard_error/{task}": self.standard_error(task)}
            for k in pass_at:
                found[f"pass_at_{k}/{task}"] = self.pass_at(task, k)
                found[f"standard_error/{task}/pass_at_{k}"] = self.standard_error(task, k)
        return found

    def _right(self, task: str) -> list[list[bool]]:
        """For each question which of its answers are right."""
        return [[answer.correct for answer in answers] for answers in by_question(self.predictions[task])]

    def _score(self, task: str) -> float:
        return statistics.fmean(sum(answers) / len(answers) for answers in self._right(task))


def pass_at(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n answers, c of them right, hold a right one.

    Raises:
        ValueError: k is above n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap_error(values: Sequence[float], *, seed: int = 0) -> float:
    """The standard error of a mean: the standard deviation of the means of 1000 resamples with replacement."""
    draws = random.Random(seed)
    means = [statistics.fmean(draws.choices(values, k=len(values))) for _ in range(_RESAMPLES)]
    return statistics.pstdev(means)
