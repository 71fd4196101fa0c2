"""Is a difference between two methods more than noise? A paired bootstrap, corrected for many comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """One method against another, in accuracy (0..1) averaged over the tasks.

    Attributes:
        method, baseline: their names; a positive difference is in favour of `method`.
        difference: accuracy of `method` minus accuracy of `baseline`.
        low, high: the 95 % confidence interval (percentiles of the bootstrap).
        p: two-sided p-value: share of resampled differences whose distance to `difference` is |`difference`| or more.
        corrected: `p` after Holm's correction over all comparisons made together.
        questions: number of questions, which both were asked.
        seeds: numbers of seeds of `method` and of `baseline`.
    """

    method: str
    baseline: str
    difference: float
    low: float
    high: float
    p: float
    corrected: float
    questions: int
    seeds: tuple[int, int]

    @property
    def is_noise(self) -> bool:
        return self.corrected >= LEVEL


TaskAnswers = Mapping[str, "NDArray[np.float64]"]
"""One method's answers: task -> share of correct answers to each question, [questions]."""


def compare_all(
    method: str, answers: TaskAnswers, baselines: Mapping[str, TaskAnswers], seeds: Mapping[str, int], *, seed: int = 0
) -> list[Difference]:
    """Compare a method with every baseline on the same questions.

    The bootstrap resamples questions, not seeds: the answers of all seeds to a question are pooled into the share of
    correct ones. Questions are drawn with replacement within each task, the same ones for all baselines. All tasks have
    equal weight, whatever their size, as in the average that the tables show. (Efron and Tibshirani 1993; Koehn 2004
    for the paired test.)

    Args:
        method: name of the method.
        answers: the method's answers.
        baselines: name -> answers to the same questions in the same order.
        seeds: name -> number of seeds that are pooled.
        seed: seed of the resampling.

    Raises:
        ValueError: a baseline was asked other tasks, or another number of questions.
    """
    import numpy as np

    names = list(baselines)
    if not names:
        return []
    draws = np.random.default_rng(seed)
    observed = np.zeros(len(names))
    resampled = np.zeros((RESAMPLES, len(names)))
    for task, mine in answers.items():
        if any(task not in baselines[name] or len(baselines[name][task]) != len(mine) for name in names):
            raise ValueError(f"not all methods were asked the same questions of {task}")
        gaps = np.stack([mine - baselines[name][task] for name in names], axis=1)
        # With few seeds, gaps have few distinct values. Drawing how often each value occurs equals drawing questions.
        values, counts = np.unique(gaps, axis=0, return_counts=True)
        observed += gaps.mean(axis=0)
        resampled += draws.multinomial(len(mine), counts / len(mine), size=RESAMPLES) @ values / len(mine)
    observed, resampled = observed / len(answers), resampled / len(answers)
    extreme = (np.abs(resampled - observed) >= np.abs(observed) - 1e-12).sum(axis=0)
    p = [(1 + int(count)) / (1 + RESAMPLES) for count in extreme]
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    questions = sum(len(mine) for mine in answers.values())
    return [
        Difference(
            method, name, float(observed[i]), float(low[i]), float(high[i]), p[i], corrected, questions,
            (seeds[method], seeds[name]),
        )
        for i, (name, corrected) in enumerate(zip(names, holm(p), strict=True))
    ]  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (1979).

    Of n values, the smallest is multiplied by n, the next by n - 1, and so on; none may fall below the one before it.
    """
    corrected = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected
