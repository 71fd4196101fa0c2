"""When which modules gain how many ranks: plain numbers, for which PyTorch is not loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GrowthPlan:
    """When how many ranks are added.

    Attributes:
        steps: the optimizer steps after which modules grow; rising.
        top: modules that grow each time.
        ranks: ranks that each of them gains.
        target: ranks of all modules together at the end.
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
    """The growth of a run: after steps warmup, warmup + interval, ... up to `until`.

    Args:
        target_rank: ranks per module at the end, on average.
        until: the last step that may add ranks; None = the last but one.
        ranks: ranks that a growing module gains; None = half of target_rank (the authors' code: 1 for 2, 2 for 4, ...).
        top: modules that grow each time; None = as few as reach the target in time.

    Raises:
        ValueError: no growth would happen, or the target is not reached; says which value would do.
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
        fits = f"top_h = {needed} would do" if needed <= modules else "add more ranks each time, or more often"
        raise ValueError(
            f"only {reached} of {target_rank * modules} ranks ({target_rank} for each of {modules} modules) are "
            f"reached by {len(steps)} growths between step {first} and step {last} of {chosen} modules by {ranks}: "
            f"{fits}"
        )
    return GrowthPlan(steps, chosen, ranks, target_rank * modules)


def choose_modules(
    scores: Mapping[str, float], ranks: Mapping[str, int], capacity: Mapping[str, int], plan: GrowthPlan
) -> dict[str, int]:
    """How many ranks each module gains: the plan's number for the `top` most important ones that have room.

    At most what is missing to the target is given, so that the last growth meets it exactly. Equal scores are decided
    by the modules' order.
    """
    left = plan.target - sum(ranks.values())
    gains: dict[str, int] = {}
    for name in sorted(scores, key=lambda name: -scores[name]):
        gain = min(plan.ranks, capacity[name] - ranks[name], left)
        if gain > 0 and len(gains) < plan.top:
            gains[name] = gain
            left -= gain
    return gains
