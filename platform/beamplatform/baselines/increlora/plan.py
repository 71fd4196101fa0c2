"""The growth plan: which modules gain ranks, when, and how many. This module does not load PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GrowthPlan:
    """When ranks are added, and how many.

    Attributes:
        steps: the optimizer steps after which modules grow, in rising order.
        top: number of modules that grow each time.
        ranks: number of ranks that each growing module gains.
        target: total number of ranks of all modules at the end.
    """

    steps: tuple[int, ...]
    top: int
    ranks: int
    target: int


def plan_growth(
    *,
    total_steps: int,
    modules: int,
    target_rank: int,
    init_r: int = 1,
    warmup: int = 0,
    interval: int = 1,
    until: int | None = None,
    ranks: int | None = None,
    top: int | None = None,
) -> GrowthPlan:
    """Plan the growth of a run. Modules grow after steps warmup, warmup + interval, ... up to `until`.

    Args:
        target_rank: ranks per module at the end, on average.
        until: the last step after which ranks may be added; None = the run's last step but one.
        ranks: number of ranks that a growing module gains; None = half of target_rank, as in the authors' code (1 for
            a target of 2, 2 for a target of 4, ...).
        top: number of modules that grow each time; None = the smallest number that reaches the target in time.

    Raises:
        ValueError: no growth would happen, or the target would not be reached. The message says which value works.
    """
    last = total_steps - 1 if until is None else min(until, total_steps - 1)
    first = max(1, warmup)
    steps = tuple(range(first, last + 1, interval))
    missing = (target_rank - init_r) * modules
    if missing <= 0:
        raise ValueError(f"the target rank ({target_rank}) must be above the first one ({init_r})")
    if not steps:
        raise ValueError(f"no rank would ever be added: growth would be from step {first} to step {last}")
    if ranks is None:
        ranks = max(1, target_rank // 2)
    needed = math.ceil(missing / (len(steps) * ranks))
    chosen = min(needed if top is None else top, modules)
    if len(steps) * chosen * ranks < missing:
        reached = init_r * modules + len(steps) * chosen * ranks
        advice = f"top_h = {needed} would do" if needed <= modules else "add more ranks each time, or more often"
        raise ValueError(
            f"only {reached} of {target_rank * modules} ranks ({target_rank} for each of {modules} modules) would be "
            f"reached: {len(steps)} growths between step {first} and step {last}, each of {chosen} modules by {ranks} "
            f"rank(s); {advice}"
        )
    return GrowthPlan(steps, chosen, ranks, target_rank * modules)


def choose_modules(
    scores: Mapping[str, float], ranks: Mapping[str, int], capacity: Mapping[str, int], plan: GrowthPlan
) -> dict[str, int]:
    """Choose the modules that grow and return the number of ranks that each of them gains.

    The `plan.top` most important modules with room left gain `plan.ranks` each, or fewer if they have less room. All
    gains together are at most what is missing to the target, so that the last growth meets the target exactly. Modules
    with equal scores are taken in their order in `scores`.
    """
    left = plan.target - sum(ranks.values())
    gains: dict[str, int] = {}
    for name in sorted(scores, key=lambda name: -scores[name]):
        gain = min(plan.ranks, capacity[name] - ranks[name], left)
        if gain > 0 and len(gains) < plan.top:
            gains[name] = gain
            left -= gain
    return gains
