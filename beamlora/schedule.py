"""The schedule of a run: when beam steps happen, and the threshold p(t) of each. Importing it does not load torch."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

from beamlora.options import BeamOptions

logger = logging.getLogger(__name__)

Curve = Literal["cosine", "linear", "constant"]

_LR_CURVES: dict[str, Curve] = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


@dataclass(frozen=True)
class BeamSchedule:
    """When beam steps happen, and the threshold p(t) of each. Steps are optimizer steps, counted from 1.

    Attributes:
        total_steps: number of steps of the whole run.
        interval: number of steps between beam steps.
        window_end: the last step of the operating window (in the reference, the end of the second of three epochs).
        p_init: the threshold at the start of the run.
        curve: how the threshold rises from `p_init` to 1.
        horizon: where the threshold reaches 1: at the end of the window (reference) or of the whole run (paper).
    """

    total_steps: int
    interval: int
    window_end: int
    p_init: float
    curve: Curve
    horizon: Literal["window", "total"]

    def threshold(self, step: int) -> float:
        """Return p(t) of Eq. 14, the share of the total score that a beam step leaves untouched.

        It rises from p_init to 1. A constant curve stays at p_init until the horizon (the ablation "without dynamic
        threshold").
        """
        end = self.window_end if self.horizon == "window" else self.total_steps
        if step > end:
            return 1.0
        if self.curve == "constant":
            return self.p_init
        progress = step / end
        risen = progress if self.curve == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.p_init + (1 - self.p_init) * risen

    def beam_steps(self) -> tuple[int, ...]:
        """Return the steps at which a beam step happens, in ascending order.

        These are the multiples of `interval` inside the operating window that have p(t) < 1 and at least one interval
        left until the end of the run.
        """
        last = min(self.window_end, self.total_steps - self.interval)
        return tuple(t for t in range(self.interval, last + 1, self.interval) if self.threshold(t) < 1)

    def reset_steps(self) -> tuple[int, ...]:
        """Return the steps at which the reference sets the optimizer moments of all scores to zero.

        These are the multiples of `interval` that have at least one interval left until the end of the run. They
        continue after the operating window.
        """
        return tuple(range(self.interval, self.total_steps - self.interval + 1, self.interval))

    def snapshot_step(self, beam_step: int) -> int:
        """Return the step after which the snapshot for `beam_step` is taken, half an interval earlier (footnote 3).

        This is a step t with t % interval == interval // 2: half of an odd interval is rounded down.
        """
        return beam_step - self.interval + self.interval // 2


def window_end(total_steps: int, operate_until: float) -> int:
    """Return the last step of the operating window, which covers the share `operate_until` of all steps."""
    rounding = 1e-9 * total_steps  # floating-point errors must not lose a step: 2/3 of 300 steps is step 200
    return math.floor(total_steps * operate_until + rounding)


def plan_schedule(options: BeamOptions, total_steps: int, lr_schedule: str) -> BeamSchedule:
    """Return the schedule of a run of `total_steps` optimizer steps.

    Raises:
        ValueError: an option does not fit the run, or no beam step can happen in it.
    """
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(f"total_steps={total_steps!r}: must be a whole number of optimizer steps, at least 1")
    if lr_schedule not in _LR_CURVES and options.threshold_schedule == "match_lr":
        raise ValueError(
            f"lr_schedule={lr_schedule!r}: threshold_schedule='match_lr' follows {', '.join(_LR_CURVES)}; "
            "with another learning-rate schedule set threshold_schedule to cosine, linear or constant"
        )
    curve = _LR_CURVES[lr_schedule] if options.threshold_schedule == "match_lr" else options.threshold_schedule

    def with_interval(interval: int) -> BeamSchedule:
        end = window_end(total_steps, options.operate_until)
        return BeamSchedule(total_steps, interval, end, options.p_init, curve, options.threshold_horizon)

    interval = options.interval
    if isinstance(interval, float):
        interval = round(interval * total_steps)
        if interval < 2:
            raise ValueError(
                f"interval={options.interval!r} of {total_steps} steps is {interval} steps: must be at least 2"
            )
    schedule = with_interval(interval)
    if options.p_init == 1:
        logger.warning("p_init=1: no rank is ever operated, this is LoRA with scores")
    elif not schedule.beam_steps():
        largest = next(
            (i for i in range(min(interval, total_steps // 2), 1, -1) if with_interval(i).beam_steps()), None
        )
        raise ValueError(
            f"interval={options.interval!r}: no beam step can happen in {total_steps} steps; "
            + (f"the largest interval that works is {largest}" if largest else "the run is too short for any interval")
        )
    return schedule
