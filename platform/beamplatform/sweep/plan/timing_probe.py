"""Times the first steps of a sweep's largest trial, to estimate how long the whole sweep will take."""

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
"""Steps between two reports. Steps before the first report are not timed: libraries load and allocators grow then."""


@dataclass(frozen=True)
class Probe:
    """Time and memory that were measured over a few steps.

    Attributes:
        method: the method of the trial that needs the most memory by the plan's estimate.
        batch: the trial's global batch.
        seconds: seconds for one optimizer step.
        start: seconds from the launch to the first step.
        memory: peak memory of a worker in bytes.
        expected: the plan's estimate of `memory` in bytes.
    """

    method: str
    batch: int
    seconds: float
    start: float
    memory: int
    expected: int

    def training_seconds(self, plan: Plan, concurrent: int) -> float:
        """Estimate the seconds to train all trials of the plan, `concurrent` at a time.

        Trials of a search with a budget are not counted. If the search stops trials early, this is an upper bound.
        """
        total = 0.0
        for method in plan.methods:
            trials = (plan.search_trials(method) or 0) + len(plan.search.seeds)
            share = plan.checked[method][0].trial.training.global_batch / self.batch
            total += trials * (self.start + share * self.seconds * plan.steps(method))
        return total / concurrent


def _beside(work: Callable[[], object]) -> None:
    """Run `work` in another thread and wait for it.

    On the main thread, Ray Train takes over Ctrl-C for good and ends the program by itself.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # Ctrl-C does not wait for a daemon
    done.result()


def run_probe(plan: Plan, storage: str, *, use_gpu: bool) -> Probe:
    """Train the largest trial for 20 steps, and throw the result away. Ray must be running.

    Raises:
        ray.train.TrainingFailedError: the trial cannot be trained.
        KeyboardInterrupt: at once on Ctrl-C; the caller shuts Ray down.
    """
    largest = plan.largest
    settings = {"log_every": _EVERY, "validate_every": None, "checkpoint_every": None}
    training = largest.trial.training.model_copy(update=settings)
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
