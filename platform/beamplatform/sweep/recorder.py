"""Training metrics on their way to MLflow: written by the driver alone, kept while the tracking server is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beamplatform.tracking import Tracker

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""How long an unreachable server is left alone before the next try, so that trying does not hold up the sweep."""

Rows = Sequence[tuple[int, dict[str, float]]]


class Recorder:
    """Writes each trial's metrics once and in order.

    Workers report to Ray, and Ray to the driver, which is where this stands: an SQLite store is then written by one
    process, and the workers of a cluster need no way to the tracking server.
    """

    def __init__(self, tracker: Tracker, run_ids: Sequence[str]) -> None:
        self._tracker = tracker
        self._run_ids = run_ids
        self._last = [-1] * len(run_ids)
        self._pending: list[tuple[str, Rows]] = []
        self._not_before = 0.0

    def add(self, index: int, rows: Rows) -> None:
        """Metrics of trial `index`. Steps that a restarted worker repeats are dropped: they are the same again."""
        new = [(step, dict(metrics)) for step, metrics in rows if step > self._last[index]]
        if new:
            self._last[index] = new[-1][0]
            self._pending.append((self._run_ids[index], new))
        if time.monotonic() >= self._not_before:
            self._try()

    def flush(self) -> None:
        """Write what is still pending, before a run is finished.

        Raises:
            ConnectionError: the server is still away; says how many values are missing.
        """
        self._try()
        if self._pending:
            values = sum(len(metrics) for _, rows in self._pending for _, metrics in rows)
            raise ConnectionError(f"the tracking store {self._tracker.uri} is away, and {values} values are not in it")

    def _try(self) -> None:
        while self._pending:
            run_id, rows = self._pending[0]
            try:
                self._tracker.log_metrics(run_id, rows)
            # MLflow raises errors of its own, of requests and of SQLAlchemy. None may end a training run.
            except Exception as error:
                self._not_before = time.monotonic() + RETRY_SECONDS
                log.warning("metrics are kept until the tracking store answers again: %s", error)
                return
            self._pending.pop(0)
