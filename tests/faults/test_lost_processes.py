"""One trial after the other loses a process of another kind, or is stopped while it starts again after such a loss.

There is room for one trial only: were any core lost with one of them, the next would wait for ever.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from beamplatform.config.trial import Trial
from beamplatform.sweep.trials.tune_actor import INDEX

Fault = tuple[str, float | None]

STEPS = 12
FAULTS: list[Fault] = [
    # The process that dies at step 4; after how many seconds the trial is stopped, if it is.
    ("RayTrainWorker", 0.0),
    ("RayTrainWorker", 1.0),  # its controller has seen it and gives the resources back
    ("RayTrainWorker", 3.0),  # its controller starts new workers
    ("TrainController", None),
    ("TrainController", 0.0),
    ("trainable", None),
    ("trainable", 0.0),
    ("RayTrainWorker", None),
]


class Faults(FIFOScheduler):
    """Kills what a trial's fault says at its first result of step 4, and decides as it says."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__()
        self.faults = faults
        self.done: set[int] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        index = trial.config[INDEX]
        if result.get("step") != 4 or index in self.done:
            return TrialScheduler.CONTINUE
        self.done.add(index)
        victim, stop_after = self.faults[index]
        for pid in [result["pid"]] if victim == "trainable" else processes(victim):
            os.kill(pid, signal.SIGKILL)
        if stop_after is None:
            return TrialScheduler.CONTINUE
        time.sleep(stop_after)
        return TrialScheduler.STOP


class NotRecorded:
    def add(self, index: int, rows: Any) -> None:
        pass


def actors(*filters: tuple[str, str, str]) -> list[Any]:
    """The actors of this Ray; there may be others on this machine, which the State API would come across."""
    from ray.util.state import list_actors

    return list_actors(ray.get_runtime_context().gcs_address, filters=list(filters), limit=1000, detail=True)


def processes(class_name: str) -> list[int]:
    """The live processes of an actor class; they are those of the one trial that is running."""
    found = actors(("class_name", "=", class_name), ("state", "=", "ALIVE"))
    assert found, f"no {class_name}"
    return [state.pid for state in found]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([("TrainController", None), ("RayTrainWorker", None)], marks=pytest.mark.faults),
        pytest.param(FAULTS, marks=pytest.mark.campaign),
    ],
    ids=["two", "all"],
)
def test_every_trial_gives_way_to_the_next(
    faults: list[Fault],
    trial: Callable[..., Trial],
    trained_under_ray: Callable[..., Any],
    tmp_path: Path,
    forked_ray: None,
) -> None:
    trials = [
        trial(
            "lora",
            shared__learning_rate=1e-3 * (1 + index),
            training__max_steps=STEPS,
            training__log_every=4,
            data__validation_records=8,
        )
        for index in range(len(faults))
    ]
    ray.init(address="local", num_cpus=1, include_dashboard=True, dashboard_host="127.0.0.1")
    try:
        outcome = trained_under_ray(trials, tmp_path, NotRecorded(), concurrent=1, scheduler=Faults(faults))
        stopped = {index for index, (_, after) in enumerate(faults) if after is not None}
        assert outcome.stopped == dict.fromkeys(stopped, "stopped by Faults at step 4")
        lost = {index for index, (victim, _) in enumerate(faults) if victim != "RayTrainWorker"} - stopped
        assert set(outcome.failed) == lost, "a trial survives the loss of a worker, not of what stands above it"
        assert (tmp_path / trials[-1].name / "export" / "trial.json").exists()
        assert all(group["state"] == "REMOVED" for group in ray.util.placement_group_table().values())
        deadline = time.monotonic() + 600
        while True:
            # The coordinator is Ray's own, one for the whole cluster, and not a trial's.
            left = actors(("state", "=", "ALIVE"), ("class_name", "!=", "_AutoscalingCoordinatorActor"))
            if not left and ray.available_resources().get("CPU") == 1:
                break
            assert time.monotonic() < deadline, (left, ray.available_resources())
            time.sleep(0.5)
    finally:
        ray.shutdown()
