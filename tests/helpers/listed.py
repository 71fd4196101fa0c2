"""Trials for the stage "train" that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from beamplatform.sweep.trials.train_stage import Job


class Listed:
    """`beamplatform.sweep.trials.train_stage.Jobs`, from a list."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._left = list(jobs)

    @property
    def finished(self) -> bool:
        return not self._left

    def next(self) -> Job | None:
        return self._left.pop(0) if self._left else None
