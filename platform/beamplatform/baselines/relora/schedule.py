"""ReLoRA's learning rate: one cosine over the whole run, interrupted by a new warm-up after every restart."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RestartSchedule:
    """Factors on the peak learning rate ("jagged cosine", arXiv 2307.05695, Figure 2).

    Attributes:
        total_steps: optimizer steps of the run.
        restarts: numbers of the steps after which the adapter restarts, in rising order and below total_steps.
        warmup: steps of the first warm-up.
        restart_warmup: steps of the warm-up after a restart.
        floor: factor at the end of the cosine.
    """

    total_steps: int
    restarts: tuple[int, ...]
    warmup: int = 500
    restart_warmup: int = 100
    floor: float = 0.1

    def factor(self, step: int) -> float:
        """Return the factor for optimizer step `step`, counted from 0."""
        if step < self.warmup:
            return step / self.warmup
        since = step - max((restart for restart in self.restarts if restart <= step), default=-self.restart_warmup)
        if since < self.restart_warmup:
            # A straight line from 0 to the curve's value at the step where the warm-up ends.
            return since / self.restart_warmup * self._curve(step - since + self.restart_warmup)
        return self._curve(step)

    def _curve(self, step: int) -> float:
        done = min(1.0, (step - self.warmup) / max(1, self.total_steps - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def equal_cycles(total_steps: int, cycle: int | float) -> tuple[int, ...]:
    """Return the numbers of the steps after which the adapter restarts, for cycles of equal length.

    Args:
        cycle: length of a cycle. An integer is a number of steps and must divide total_steps. A float is a share of
            the run whose inverse must be a whole number: 0.25 makes four cycles, equal up to rounding.

    Raises:
        ValueError: the run is too short for a restart, or the last cycle would be cut off.
    """
    if isinstance(cycle, int):
        if cycle >= total_steps:
            raise ValueError(f"no merge can happen: a cycle of {cycle} steps does not fit twice into {total_steps}")
        if total_steps % cycle:
            divisors = [n for n in range(1, total_steps // 2 + 1) if total_steps % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - cycle))[:3])
            raise ValueError(
                f"{total_steps} steps are not a multiple of a cycle of {cycle}: the last cycle would be cut off; near "
                f"values that divide {total_steps}: {', '.join(map(str, near))} (or give a fraction, such as 0.25)"
            )
        return tuple(range(cycle, total_steps, cycle))
    cycles = round(1 / cycle)
    if not math.isclose(cycles * cycle, 1, rel_tol=1e-3):
        raise ValueError(f"cycle={cycle!r}: the run must be a multiple of it: 0.5, 0.25, 0.2, 0.1, ...")
    if cycles < 2 or total_steps < 2 * cycles:
        raise ValueError(f"no merge can happen: {cycles} cycles of at least 2 steps do not fit into {total_steps}")
    return tuple(round(number * total_steps / cycles) for number in range(1, cycles))
