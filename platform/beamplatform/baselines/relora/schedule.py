"""ReLoRA's learning rate: one cosine over the whole run, left for a new warm-up after every restart."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RestartSchedule:
    """Factors on the peak learning rate ("jagged cosine", arXiv 2307.05695, Figure 2).

    Attributes:
        total_steps: optimizer steps of the run.
        restarts: numbers of steps after which the adapter starts again; rising, below total_steps.
        warmup: steps of the first warm-up.
        restart_warmup: steps of the warm-up after a restart.
        floor: where the cosine ends.
    """

    total_steps: int
    restarts: tuple[int, ...]
    warmup: int = 500
    restart_warmup: int = 100
    floor: float = 0.1

    def factor(self, step: int) -> float:
        """The factor for optimizer step `step`, from 0."""
        if step < self.warmup:
            return step / self.warmup
        since = step - max((restart for restart in self.restarts if restart <= step), default=-self.restart_warmup)
        if since < self.restart_warmup:
            # Straight from 0 to the point of the curve that the warm-up ends at.
            return since / self.restart_warmup * self._curve(step - since + self.restart_warmup)
        return self._curve(step)

    def _curve(self, step: int) -> float:
        done = min(1.0, (step - self.warmup) / max(1, self.total_steps - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def equal_cycles(total_steps: int, cycle: int | float) -> tuple[int, ...]:
    """The restarts of a run.

    Args:
        cycle: steps between restarts (an integer, of which total_steps is a multiple), or their share of the run (a
            float, of which the whole is a multiple: 0.25 makes four cycles, equal up to rounding).

    Raises:
        ValueError: no restart fits in, or the last cycle would be cut off.
    """
    if isinstance(cycle, int):
        if cycle >= total_steps:
            raise ValueError(f"no merge can happen: a cycle of {cycle} steps does not fit twice into {total_steps}")
        if total_steps % cycle:
            fitting = [n for n in range(1, total_steps // 2 + 1) if total_steps % n == 0]
            near = sorted(sorted(fitting, key=lambda n: abs(n - cycle))[:3])
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
