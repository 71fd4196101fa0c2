"""The paired bootstrap against a plain one, and how often it calls noise a difference."""

from __future__ import annotations

import numpy as np
import pytest

from beamplatform.report.statistics import RESAMPLES, compare_all, holm


def answers(draws: np.random.Generator, accuracy: float, seeds: int = 3, questions: int = 200) -> np.ndarray:
    return (draws.random((seeds, questions)) < accuracy).mean(axis=0)


def test_it_is_the_bootstrap_over_questions() -> None:
    draws = np.random.default_rng(1)
    mine = {"a": answers(draws, 0.7), "b": answers(draws, 0.5, questions=80)}
    other = {"a": answers(draws, 0.6), "b": answers(draws, 0.5, questions=80)}
    (found,) = compare_all("m", mine, {"o": other}, {"m": 3, "o": 3})
    gaps = [mine[task] - other[task] for task in ("a", "b")]
    plain = np.random.default_rng(2)
    means = np.mean([gap[plain.integers(len(gap), size=(RESAMPLES, len(gap)))].mean(axis=1) for gap in gaps], axis=0)
    difference = np.mean([gap.mean() for gap in gaps])
    assert found.difference == pytest.approx(difference)
    assert [found.low, found.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.005)
    assert found.p == pytest.approx((np.abs(means - difference) >= abs(difference)).mean(), abs=0.02)
    assert (found.questions, found.seeds) == (280, (3, 3)) and found.corrected == found.p


def test_equal_methods_are_seldom_called_different_and_unequal_ones_mostly() -> None:
    draws = np.random.default_rng(3)
    verdicts: dict[float, list[bool]] = {0.6: [], 0.75: []}
    for _ in range(100):
        for accuracy, found in verdicts.items():
            baselines = {f"o{n}": {"a": answers(draws, 0.6)} for n in range(3)}
            compared = compare_all("m", {"a": answers(draws, accuracy)}, baselines, dict.fromkeys(["m", *baselines], 3))
            found.append(any(not difference.is_noise for difference in compared))
    assert sum(verdicts[0.6]) <= 12, "of 100 sweeps without any difference about 5 show one"
    assert sum(verdicts[0.75]) >= 95


def test_the_same_answers_are_no_difference() -> None:
    mine = {"a": np.array([0.0, 1.0, 0.5])}
    (found,) = compare_all("m", mine, {"o": mine}, {"m": 2, "o": 2})
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1) and found.is_noise


def test_it_can_be_repeated() -> None:
    draws = np.random.default_rng(1)
    mine, other = {"a": answers(draws, 0.7)}, {"o": {"a": answers(draws, 0.6)}}
    assert compare_all("m", mine, other, {"m": 3, "o": 3}) == compare_all("m", mine, other, {"m": 3, "o": 3})


def test_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="same questions of a"):
        compare_all("m", {"a": np.ones(3)}, {"o": {"a": np.ones(4)}}, {"m": 1, "o": 1})


@pytest.mark.parametrize(
    ("p", "expected"),
    [([], []), ([0.04], [0.04]), ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.5, 0.9, 0.001], [1.0, 1.0, 0.003])],
)
def test_holm(p: list[float], expected: list[float]) -> None:
    assert holm(p) == pytest.approx(expected)
