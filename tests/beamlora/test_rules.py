"""The paper's equations against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from beamlora.rules import (
    RankPairs,
    average_scores,
    operated_counts,
    pair_ranks,
    pairing_generator,
    score_weights,
)
from beamlora.schedule import BeamSchedule, window_end


def uniform(r: int) -> torch.Tensor:
    return torch.full((r,), 1 / r, dtype=torch.float64)


# --- scores (Eq. 4, 5) --------------------------------------------------------------------------------------


def test_weights_start_at_one_and_sum_to_r() -> None:
    assert torch.equal(score_weights(torch.zeros(4), 0.05), torch.ones(4))
    assert torch.equal(score_weights(torch.zeros(4), 0.05, "unit"), torch.full((4,), 0.25))
    assert score_weights(torch.randn(7), 0.05).sum().item() == pytest.approx(7)


def test_weights_by_hand() -> None:
    # g / tau = ln 3, 0: softmax 3/4, 1/4; times r = 2.
    scores = torch.tensor([0.05 * math.log(3), 0.0], dtype=torch.float64)
    assert score_weights(scores, 0.05).tolist() == pytest.approx([1.5, 0.5])
    assert score_weights(scores, 0.05, "unit").tolist() == pytest.approx([0.75, 0.25])
    assert score_weights(scores, 0.1).tolist() == pytest.approx([2 * 3**0.5 / (3**0.5 + 1), 2 / (3**0.5 + 1)])


def test_weights_of_bfloat16_scores_are_computed_in_float32() -> None:
    scores = torch.tensor([0.1, -0.03, 0.2], dtype=torch.bfloat16)
    weights = score_weights(scores, 0.05)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, score_weights(scores.float(), 0.05))


# --- p(t) (Eq. 14) ------------------------------------------------------------------------------------------


def schedule(**changes: object) -> BeamSchedule:
    defaults = {
        "total_steps": 300,
        "interval": 40,
        "window_end": 200,
        "p_init": 0.9,
        "curve": "cosine",
        "horizon": "window",
    }
    return BeamSchedule(**(defaults | changes))


@pytest.mark.parametrize(
    ("curve", "horizon", "expected"),
    [
        ("cosine", "window", {0: 0.9, 50: 0.9 + 0.05 * (1 - 0.5**0.5), 100: 0.95, 200: 1, 201: 1, 300: 1}),
        ("cosine", "total", {0: 0.9, 75: 0.9 + 0.05 * (1 - 0.5**0.5), 150: 0.95, 300: 1}),
        ("linear", "window", {0: 0.9, 50: 0.925, 100: 0.95, 200: 1, 201: 1}),
        ("linear", "total", {0: 0.9, 75: 0.925, 150: 0.95, 300: 1}),
        ("constant", "window", {0: 0.9, 100: 0.9, 200: 0.9, 201: 1}),
        ("constant", "total", {0: 0.9, 150: 0.9, 300: 0.9}),
    ],
)
def test_threshold(curve: str, horizon: str, expected: dict[int, float]) -> None:
    rule = schedule(curve=curve, horizon=horizon)
    assert {t: rule.threshold(t) for t in expected} == pytest.approx(expected)
    if curve != "constant":
        assert rule.threshold(200 if horizon == "window" else 300) == 1.0


# --- when ---------------------------------------------------------------------------------------------------


def test_window_end_is_two_thirds() -> None:
    assert [window_end(total, 2 / 3) for total in (3, 9, 300, 100, 7)] == [2, 6, 200, 66, 4]
    assert window_end(100, 1.0) == 100


def test_beam_steps_inside_the_window() -> None:
    assert schedule().beam_steps() == (40, 80, 120, 160)  # p(200) = 1: nothing to do there
    assert schedule(curve="constant").beam_steps() == (40, 80, 120, 160, 200)  # the end itself is inside
    assert schedule(horizon="total").beam_steps() == (40, 80, 120, 160, 200)
    assert schedule(p_init=1.0).beam_steps() == ()


def test_last_beam_step_is_an_interval_before_the_end() -> None:
    whole_run = schedule(total_steps=100, window_end=100, horizon="total", interval=30)
    assert whole_run.beam_steps() == (30, 60)
    assert schedule(total_steps=90, window_end=90, horizon="total", interval=30).beam_steps() == (30, 60)


def test_snapshot_half_an_interval_before() -> None:
    assert [schedule(interval=40).snapshot_step(t) for t in (40, 80)] == [20, 60]
    assert [schedule(interval=5).snapshot_step(t) for t in (5, 10)] == [2, 7]  # odd: t % 5 == 2
    assert [schedule(interval=2).snapshot_step(t) for t in (2, 4)] == [1, 3]
    assert [schedule(interval=3).snapshot_step(t) for t in (3, 6)] == [1, 4]


# --- how many (Eq. 13) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "module"])
@pytest.mark.parametrize("crossing", ["greater", "greater_equal"])
def test_uniform_64_operates_the_last_four(scope: str, crossing: str) -> None:
    # c_60 = 60/64 = 0.9375 < 0.95 < c_61: ranks 61 to 64.
    assert operated_counts([uniform(64)], 0.95, scope=scope, crossing=crossing) == [4]


@pytest.mark.parametrize("scope", ["global", "module"])
def test_crossing_options_differ_where_the_sum_meets_the_threshold(scope: str) -> None:
    # r = 20, p = 0.95: c_19 is 0.95 up to rounding. Equal counts as crossed only for >=.
    assert operated_counts([uniform(20)], 0.95, scope=scope, crossing="greater") == [1]
    assert operated_counts([uniform(20)], 0.95, scope=scope, crossing="greater_equal") == [2]


@pytest.mark.parametrize("r", [10, 20, 40, 60, 80, 100, 160, 320])
def test_rounding_does_not_decide(r: int) -> None:
    # p = (r - k) / r is met exactly by a partial sum of equal scores, for which float sums differ in the last
    # bit.
    for k in range(1, r // 2):
        p = (r - k) / r
        assert operated_counts([uniform(r)], p, crossing="greater") == [k]
        assert operated_counts([uniform(r)], p, crossing="greater_equal") == [k + 1]


def test_module_scope_by_hand() -> None:
    scores = [torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64), uniform(4)]
    # Sorted 0.4 0.7 0.9 1.0 and 0.25 0.5 0.75 1.0 against 0.85: from the third, and from the fourth on.
    assert operated_counts(scores, 0.85, scope="module") == [2, 1]


def test_global_scope_by_hand() -> None:
    scores = [torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64), uniform(4)]
    # Scaled by r: 1.6 1.2 | 1 1 1 1 | 0.8 0.4, sums 1.6 2.8 3.8 4.8 5.8 6.8 7.6 8.0, against 0.85 * 8 = 6.8:
    # exactly met by the sixth, so from the seventh on (>), or from the sixth, which is the second module's
    # last (>=).
    assert operated_counts(scores, 0.85, scope="global", crossing="greater") == [2, 0]
    assert operated_counts(scores, 0.85, scope="global", crossing="greater_equal") == [2, 1]


def test_global_scope_weighs_modules_by_their_rank() -> None:
    # Six scaled scores of 1; 0.7 * 6 = 4.2: the fifth and sixth, which stable order leaves with the second
    # module.
    assert operated_counts([uniform(2), uniform(4)], 0.7, scope="global") == [0, 2]
    # Unscaled, the first module's quarters would be the smallest scores here.
    assert operated_counts([uniform(4), uniform(2)], 0.7, scope="global") == [0, 1]  # two, capped at r / 2


def test_never_more_than_half() -> None:
    peaked = torch.tensor([1.0, 0, 0, 0, 0])  # c_1 crosses at once: all five, capped
    assert operated_counts([peaked], 0.5, scope="module") == [2]
    assert operated_counts([peaked], 0.5, scope="global") == [2]


@pytest.mark.parametrize("scope", ["global", "module"])
@pytest.mark.parametrize("crossing", ["greater", "greater_equal"])
def test_nothing_at_threshold_one(scope: str, crossing: str) -> None:
    scores = [uniform(7), torch.tensor([1.0, 0.0, 0.0])]  # 7 * (1/7) and 1.0 both reach 1
    assert operated_counts(scores, 1.0, scope=scope, crossing=crossing) == [0, 0]


# --- which, and with whom ----------------------------------------------------------------------------------


def test_lowest_are_paired_with_highest() -> None:
    scores = torch.tensor([0.3, 0.05, 0.25, 0.1, 0.2, 0.1])
    pairs = pair_ranks(scores, 2, pairing_generator(0, 1))
    assert pairs.pruned.tolist() == [5, 1]  # 0.1 is the last of its equals
    assert sorted(pairs.parents.tolist()) == [0, 2]


def test_pairing_is_random_disjoint_and_reproducible() -> None:
    scores = torch.linspace(1, 0, 16)
    drawn = set()
    for step in range(40):
        torch.manual_seed(step)  # the global random state must not matter
        first, second = (pair_ranks(scores, 3, pairing_generator(5, step)) for _ in range(2))
        assert torch.equal(first.parents, second.parents)
        assert first.pruned.tolist() == [13, 14, 15]
        assert sorted(first.parents.tolist()) == [0, 1, 2]
        drawn.add(tuple(first.parents.tolist()))
    assert len(drawn) == 6  # all orders of three parents occur
    by_seed = {tuple(pair_ranks(scores, 8, pairing_generator(seed, 1)).parents.tolist()) for seed in range(5)}
    assert len(by_seed) == 5


def test_without_assessment_the_sets_are_random_and_disjoint() -> None:
    scores = torch.linspace(1, 0, 8)
    pruned = set()
    for step in range(60):
        pairs = pair_ranks(scores, 4, pairing_generator(0, step), assessment=False)
        assert sorted(pairs.pruned.tolist() + pairs.parents.tolist()) == list(range(8))
        pruned.update(pairs.pruned.tolist())
    assert pruned == set(range(8))


# --- the scores after a beam step ---------------------------------------------------------------------------


def test_scores_of_a_pair_become_their_mean() -> None:
    pairs = RankPairs(pruned=torch.tensor([3, 1]), parents=torch.tensor([0, 2]))
    after = average_scores(torch.tensor([4.0, 1.0, 2.0, -2.0]), pairs)
    assert after.tolist() == [1.0, 1.5, 1.5, 1.0]  # (3, 0): (-2 + 4) / 2; (1, 2): (1 + 2) / 2
