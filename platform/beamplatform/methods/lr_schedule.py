"""Learning rate over optimizer steps: a linear warm-up, then a cosine or a line to zero, or a constant."""

from __future__ import annotations

import math
from typing import Literal


def warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Return the number of warm-up steps.

    An integer `warmup` is this number. A float is a fraction of all steps, rounded up as in transformers.
    """
    return warmup if isinstance(warmup, int) else math.ceil(warmup * total_steps)


def learning_rate_factor(
    step: int, *, total_steps: int, warmup: int, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Return the factor on the peak learning rate for optimizer step `step`, counted from 0.

    The factor rises from 0 to 1 over the warm-up. It then falls to 0, or stays at 1 if the schedule is constant. The
    numbers equal those of transformers' `get_cosine_schedule_with_warmup` and `get_linear_schedule_with_warmup`.
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
