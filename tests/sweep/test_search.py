"""What a search tries next: a function of the space and of what was tried, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from beamplatform.config.sections import SearchSection
from beamplatform.config.space import Point, parse_space
from beamplatform.sweep.plan.proposals import Tried, propose

SPACE = parse_space(
    "lora",
    {
        "learning_rate": {"loguniform": [1e-5, 1e-1]},
        "r": {"choice": [4, 8, 16]},
        "target_modules": {"choice": [["q_proj"], "all-linear"]},
    },
)


def loss_at(point: Point) -> float:
    """Lowest at a rate of 10^-2.2, rank 8 and all layers."""
    return (math.log10(point["learning_rate"]) + 2.2) ** 2 + (point["r"] != 8) + (point["target_modules"] == ["q_proj"])


def search(algorithm: str, count: int, **values: Any) -> list[Tried]:
    section = SearchSection(algorithm=algorithm, trials=count, **values)
    tried: list[Tried] = []
    while len(tried) < count and (point := propose(SPACE, section, tried)) is not None:
        tried.append(Tried(point, "trained", [(10, loss_at(point))]))
    return tried


def best(tried: list[Tried]) -> float:
    return min(one.curve[-1][1] for one in tried)


def test_tpe_learns_from_what_it_has_seen() -> None:
    found = [(best(search("tpe", 40, seed=seed)), best(search("random", 40, seed=seed))) for seed in range(8)]
    assert sum(tpe < random for tpe, random in found) >= 6, found
    late = search("tpe", 40)[20:]
    assert sum(one.point["r"] == 8 for one in late) > len(late) / 2, "random would come to a third"


@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe"])
def test_an_interrupted_search_proposes_what_it_would_have_proposed(algorithm: str) -> None:
    section, tried = SearchSection(algorithm=algorithm, trials=12), search(algorithm, 12)
    for place in (0, 1, 5, 11):
        assert propose(SPACE, section, tried[:place]) == tried[place].point
    assert len({str(one.point) for one in tried}) == 12
    assert [one.point for one in search(algorithm, 12, seed=1)] != [one.point for one in tried]


def test_what_runs_what_failed_and_what_was_stopped_is_known() -> None:
    section, tried = SearchSection(algorithm="bohb", trials=30), search("bohb", 8)
    point = propose(SPACE, section, tried)
    assert point is not None
    states = ("running", "failed", "unfit", "stopped")
    for state in states:
        # Of 5 proposals after it none is the same again.
        more = [*tried, Tried(point, state, [(3, 9.0)] if state == "stopped" else [])]
        for _ in range(5):
            found = propose(SPACE, section, more)
            assert found is not None and found not in [one.point for one in more]
            more.append(Tried(found))
    diverged = [*tried, Tried(point, "trained", [(10, math.nan)])]
    assert propose(SPACE, section, diverged) is not None, "a loss that is no number teaches nothing, and ends nothing"
    bad = [Tried(one.point, "stopped", [(3, 50.0 + place)]) for place, one in enumerate(search("random", 12))]
    assert propose(SPACE, section, bad) != propose(SPACE, section, [Tried(one.point, "failed") for one in bad])


@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe", "bohb"])
def test_a_space_that_is_used_up_ends_the_search(algorithm: str) -> None:
    space = parse_space("lora", {"learning_rate": 1e-3, "r": {"choice": [4, 8]}, "lora_dropout": {"grid": [0, 0.1]}})
    tried: list[Tried] = []
    while (point := propose(space, SearchSection(algorithm=algorithm), tried)) is not None:
        tried.append(Tried(point, "trained", [(1, 1.0)]))
    assert len(tried) == 4 and len({str(one.point) for one in tried}) == 4
