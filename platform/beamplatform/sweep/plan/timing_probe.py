"""The first steps of a sweep's largest trial, timed, before the sweep starts: what will all of it take?"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from beamplatform.io.storage import join, read_text
from beamplatform.metrics import MEMORY, SECONDS
from beamplatform.sweep.plan.plan import Plan
from beamplatform.training.run import METRICS_FILE
from beamplatform.training.worker import RAY, Destination, train_on_ray

STEPS = 20
_EVERY = 5
"""The first so many steps are not timed: libraries load and allocators grow in them."""


@dataclass(frozen=True)
class Probe:
    """What a few steps have shown.

    Attributes:
        method: of the trial that the plan says takes the most memory.
        seconds: of one optimizer step.
        start: seconds from nothing to the first step.
        memory: peak bytes of a worker.
        expected: bytes of the plan's estimate.
    """

    method: str
    batch: int
    seconds: float
    start: float
    memory: int
    expected: int

    def training_seconds(self, plan: Plan, concurrent: int) -> float:
        """Of all the plan's trials, so many at a time; without a budget's, and the most where trials are stopped."""
        total = 0.0
        for method in plan.methods:
            trials = (plan.search_trials(method) or 0) + len(plan.search.seeds)
            share = plan.checked[method][0].trial.training.global_batch / self.batch
            total += trials * (self.start + share * self.seconds * plan.steps(method))
        return total / concurrent


def _beside(work: Callable[[], object]) -> None:
    """Do it in another thread: on the main one Ray Train takes Ctrl-C over for good, and ends the program by itself."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # an interrupt does not wait for it
    done.result()


def run_probe(plan: Plan, storage: str, *, use_gpu: bool) -> Probe:
    """Train the largest trial for 20 steps on Ray, which is running, and throw the result away.

    Raises:
        ray.train.TrainingFailedError: it cannot be trained.
        KeyboardInterrupt: at once on Ctrl-C; the caller shuts Ray down.
    """
    largest = plan.largest
    how = {"log_every": _EVERY, "validate_every": None, "checkpoint_every": None}
    training = largest.trial.training.model_copy(update=how)
    trial = largest.trial.model_copy(update={"training": training.with_workers(training.least_workers)})
    folder = join(storage, RAY, "probe", str(time.time_ns()), "export")
    began = time.monotonic()
    destination = Destination(folder, join(storage, RAY), weights=False)
    _beside(lambda: train_on_ray(trial, destination, use_gpu=use_gpu, max_failures=0, until=STEPS))
    wall = time.monotonic() - began
    text = read_text(join(folder, METRICS_FILE))
    rows = [(step, row) for step, row in json.loads(text or "[]") if SECONDS in row]
    (first, early), (last, late) = rows[0], rows[-1]
    timed = late[SECONDS] - early[SECONDS] if last > first else late[SECONDS]
    seconds = timed / (last - first if last > first else last)
    memory = int(max(row[MEMORY] for _, row in rows))
    start = max(0.0, wall - last * seconds)
    return Probe(trial.method, trial.training.global_batch, seconds, start, memory, largest.memory.total)
