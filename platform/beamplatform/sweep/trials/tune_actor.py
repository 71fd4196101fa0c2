"""Ray Tune's actor for one trial. Its Train run goes on in a thread, and ends when Tune ends the actor."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from ray import tune
from ray.train import UserCallback
from ray.util.queue import Queue

from beamplatform.config.trial import Trial
from beamplatform.metrics import TRAIN_LOSS, VALIDATION_LOSS
from beamplatform.training.failure_policy import ResilientTrainer
from beamplatform.training.worker import train_on_ray

log = logging.getLogger(__name__)

INDEX, TRIAL, DESTINATION = "index", "trial", "destination"
"""Keys of Tune's configuration of a trial."""

EXPORTED = "exported"
_LOSSES = (TRAIN_LOSS, VALIDATION_LOSS)


class TuneTrialActor(tune.Trainable):
    """Runs one trial's Train run in a thread. Each step of the actor returns the run's next report."""

    def setup(self, config: dict[str, Any], use_gpu: bool) -> None:
        trial, destination = Trial.model_validate(config[TRIAL]), config[DESTINATION]
        # One report at a time, so that training waits for a scheduler that has not decided yet.
        self._reports = Queue(maxsize=1, actor_options={"num_cpus": 0})
        self._latest: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._ended = False

        def run() -> None:
            try:
                train_on_ray(
                    trial,
                    destination,
                    use_gpu=use_gpu,
                    trainer=ResilientTrainer,
                    callbacks=[_Forward(self._reports)],
                )
            except BaseException as error:
                self._error = error
            self._reports.put(None)

        threading.Thread(target=run, name="Train run", daemon=True).start()

    def step(self) -> dict[str, Any]:
        """Return the next report of the Train run.

        The report of the last step is returned after the export, so that no scheduler stops the trial before that.
        """
        rows: list[Any] = []
        while not self._ended:
            report = self._reports.get()
            if report is None:
                self._ended = True
                break
            rows += report["rows"]
            self._latest |= {"step": report["step"], "total_steps": report["total_steps"]}
            for _, metrics in report["rows"]:
                self._latest |= {name: metrics[name] for name in _LOSSES if name in metrics}
            if report["step"] < report["total_steps"]:
                return {**self._latest, "rows": rows}
        if self._error is None:
            return {**self._latest, "rows": rows, "done": True, EXPORTED: True}
        if rows:
            # The export failed, but the rows of the last step must not be lost. They are returned without a step, so
            # that no scheduler decides about the trial.
            return {"rows": rows}
        raise self._error

    def cleanup(self) -> None:
        """Kill this actor and all that it owns if Tune is done with the trial before the Train run has ended.

        An actor that is asked to end first waits for the calls that it has made, and `controller.run` returns only at
        the end of the training. So a stopped trial would train on, although nobody reads its reports.
        """
        if not self._ended:
            ray.kill(ray.get_runtime_context().current_actor)


class _Forward(UserCallback):
    """Runs in the controller of a Train run and hands the first worker's reports to `TuneTrialActor`."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._reports.put(metrics[0])
