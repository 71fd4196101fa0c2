"""Search spaces: what is drawn, and that it is drawn the same way again."""

from __future__ import annotations

import itertools
import math

import pytest

from beamplatform.config.space import Point, Space, parse_space


def test_grids_are_crossed_and_other_domains_drawn_for_each_point() -> None:
    space = parse_space(
        "beamlora",
        {"r": {"grid": [4, 8]}, "learning_rate": {"grid": [1e-3, 2e-3]}, "p_init": {"uniform": [0.9, 0.99]}},
    )
    found = first(space, 12)
    assert {(c["r"], c["learning_rate"]) for c in found[:4]} == {(4, 1e-3), (4, 2e-3), (8, 1e-3), (8, 2e-3)}
    assert all(0.9 <= c["p_init"] <= 0.99 for c in found)
    assert len({c["p_init"] for c in found}) == 12


def test_the_same_seed_draws_the_same_and_another_draws_other_values() -> None:
    space = parse_space("lora", {"learning_rate": {"loguniform": [1e-5, 1e-2]}, "r": {"choice": [4, 8, 16]}})
    assert first(space, 5, seed=1) == first(space, 9, seed=1)[:5]
    assert first(space, 5, seed=1) != first(space, 5, seed=2)


def test_loguniform_is_uniform_in_the_exponent() -> None:
    space = parse_space("lora", {"learning_rate": {"loguniform": [1e-6, 1e-2]}})
    exponents = [math.log10(c["learning_rate"]) for c in first(space, 400)]
    below = sum(e < -4 for e in exponents) / len(exponents)
    assert min(exponents) >= -6 and max(exponents) <= -2
    assert 0.4 < below < 0.6


def test_a_space_that_is_used_up_ends() -> None:
    assert list(parse_space("lora", {"learning_rate": 1e-3}).random(0)) == [{}]
    space = parse_space("lora", {"learning_rate": 1e-3, "r": {"choice": [4, 8]}})
    assert sorted(point["r"] for point in space.random(0)) == [4, 8]
    assert space.resolve({"r": 4})["lora_dropout"] == 0.0, "defaults are part of a configuration"


def test_a_grid_cuts_intervals_and_keeps_lists() -> None:
    values = {"learning_rate": {"loguniform": [1e-4, 6e-4]}, "r": {"choice": [4, 8]}}
    space = parse_space("beamlora", values | {"p_init": {"uniform": [0.9, 0.98]}})
    found = list(space.grid(0, 3))
    assert len(found) == 3 * 2 * 3 and len({tuple(point.values()) for point in found}) == 18
    assert sorted({point["learning_rate"] for point in found}) == [1e-4, pytest.approx(2.44949e-4), 6e-4]
    assert sorted({point["p_init"] for point in found}) == [0.9, 0.94, 0.98]
    assert found == list(space.grid(0, 3)) != list(space.grid(1, 3)), "in an order that a seed decides"


def test_corners_are_the_ends_and_every_value_that_is_no_number() -> None:
    values = {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "r": {"choice": [16, 4, 8]}}
    space = parse_space("lora", values | {"target_modules": {"choice": [["q_proj"], "all-linear"]}})
    corners = space.corners()
    assert len(corners) == 2 * 2 * 2 and {corner["r"] for corner in corners} == {4, 16}
    assert {str(corner["target_modules"]) for corner in corners} == {"['q_proj']", "all-linear"}


def test_a_value_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"methods.lora.r.choice: values must differ, got \[4, 4\]"):
        parse_space("lora", {"learning_rate": 1e-3, "r": {"choice": [4, 4]}})


def first(space: Space, count: int, seed: int = 0) -> list[Point]:
    return list(itertools.islice(space.random(seed), count))
