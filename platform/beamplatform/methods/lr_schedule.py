"""Learning rate over optimizer steps: linear warm-up, then a curve to zero."""

from __future__ import annotations

import math
from typing import Literal


def warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Steps of warm-up: an integer counts steps, a float is a share of all steps (rounded up, as transformers does)."""
    return warmup if isinstance(warmup, int) else math.ceil(warmup * total_steps)


def learning_rate_factor(
    step: int, *, total_steps: int, warmup: int, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Factor on the peak learning rate for optimizer step `step` (from 0): 0 to 1 over the warm-up, then down.

    The same numbers as transformers' `get_cosine_schedule_with_warmup` and `get_linear_schedule_with_warmup`.
    """
    if step < warmup:
        return step / max(1, warmup)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
