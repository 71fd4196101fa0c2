"""Search spaces: what is drawn, and that it is drawn the same way again."""

from __future__ import annotations

import math

from beamplatform.space import parse_space


def test_grids_are_crossed_and_other_domains_drawn_for_each_point() -> None:
    space = parse_space(
        "beamlora",
        {"r": {"grid": [4, 8]}, "learning_rate": {"grid": [1e-3, 2e-3]}, "p_init": {"uniform": [0.9, 0.99]}},
    )
    found = space.configurations(samples=3, seed=0)
    assert len(found) == 2 * 2 * 3
    assert {(c["r"], c["learning_rate"]) for c in found} == {(4, 1e-3), (4, 2e-3), (8, 1e-3), (8, 2e-3)}
    assert all(0.9 <= c["p_init"] <= 0.99 for c in found)
    assert len({c["p_init"] for c in found}) == 12


def test_the_same_seed_draws_the_same_and_another_draws_other_values() -> None:
    space = parse_space("lora", {"learning_rate": {"loguniform": [1e-5, 1e-2]}, "r": {"choice": [4, 8, 16]}})
    assert space.configurations(5, seed=1) == space.configurations(5, seed=1)
    assert space.configurations(5, seed=1) != space.configurations(5, seed=2)


def test_loguniform_is_uniform_in_the_exponent() -> None:
    space = parse_space("lora", {"learning_rate": {"loguniform": [1e-6, 1e-2]}})
    exponents = [math.log10(c["learning_rate"]) for c in space.configurations(400, seed=0)]
    below = sum(e < -4 for e in exponents) / len(exponents)
    assert min(exponents) >= -6 and max(exponents) <= -2
    assert 0.4 < below < 0.6


def test_equal_draws_are_one_configuration() -> None:
    assert len(parse_space("lora", {"learning_rate": 1e-3}).configurations(5, seed=0)) == 1
    two = parse_space("lora", {"learning_rate": 1e-3, "r": {"choice": [4, 8]}}).configurations(20, seed=0)
    assert sorted(c["r"] for c in two) == [4, 8]
    assert two[0]["lora_dropout"] == 0.0, "defaults are part of a configuration"
