"""pass@k and standard errors against what they stand for."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from beamplatform.evaluation.predictions import Prediction
from beamplatform.evaluation.scores import Evaluation, bootstrap_error, pass_at


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_counts_the_draws_with_a_right_answer(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_more_than_there_are_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="pass@3 of 2 answers"):
        pass_at(2, 1, 3)


def test_the_bootstrap_agrees_with_the_formula_for_a_mean() -> None:
    draws = random.Random(1)
    values = [draws.random() ** 2 for _ in range(200)]
    assert bootstrap_error(values) == pytest.approx(statistics.pstdev(values) / math.sqrt(200), rel=0.1)
    assert bootstrap_error(values) == bootstrap_error(values) != bootstrap_error(values, seed=1)
    assert bootstrap_error([0.5] * 10) == 0


def prediction(correct: bool, sample: int) -> Prediction:
    return Prediction("d", "p", "c", "x", "x", correct, sample)


def test_errors_are_binomial_for_one_answer_and_bootstrapped_for_several() -> None:
    one = Evaluation({"a": [prediction(n < 3, 0) for n in range(4)], "b": [prediction(n < 8, 0) for n in range(16)]})
    assert one.standard_error("a") == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert one.average_error == pytest.approx(math.hypot(one.standard_error("a"), one.standard_error("b")) / 2)
    assert one.average == pytest.approx(0.625)
    several = Evaluation({"a": [prediction(sample <= n % 3, sample) for n in range(30) for sample in range(4)]})
    shares = [(1 + n % 3) / 4 for n in range(30)]
    assert several.scores == {"a": pytest.approx(statistics.fmean(shares))}
    assert several.standard_error("a") == bootstrap_error(shares)
    assert several.standard_error("a", 2) == bootstrap_error([pass_at(4, 1 + n % 3, 2) for n in range(30)])


def test_metrics_of_scores() -> None:
    predictions = [Prediction("d", "p", "c", "x", "x", sample < n, sample) for n in range(3) for sample in range(2)]
    found = Evaluation({"humaneval": predictions})
    metrics = found.metrics([2])
    assert metrics["eval/humaneval"] == metrics["eval/average"] == pytest.approx(0.5)
    assert metrics["pass_at_2/humaneval"] == pytest.approx(2 / 3)
    assert set(metrics) == {
        "eval/humaneval", "eval/average", "standard_error/humaneval", "standard_error/average", "pass_at_2/humaneval",
        "standard_error/humaneval/pass_at_2",
    }  # fmt: skip
