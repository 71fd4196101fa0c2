"""One trial under Ray Tune: an actor whose Train run goes on in a thread, and ends when Tune ends the actor."""

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
"""What Tune's configuration of a trial holds."""

EXPORTED = "exported"
_LOSSES = (TRAIN_LOSS, VALIDATION_LOSS)


class TuneTrialActor(tune.Trainable):
    """Tune's actor of one trial: its Train run goes on in a thread, and every step is the next report of it."""

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
        """The next report; that of the last step comes after the export, so that no scheduler stops the trial in it."""
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
            # The rows of the last step are not lost with the export that failed. Without a step no scheduler decides.
            return {"rows": rows}
        raise self._error

    def cleanup(self) -> None:
        """Tune is done with this trial; if its Train run has not ended, this process and all that it owns must end now.

        An actor that is asked to end waits for the calls that it has made, and `controller.run` ends with the training
        only: a stopped trial would train on, its reports unread.
        """
        if not self._ended:
            ray.kill(ray.get_runtime_context().current_actor)


class _Forward(UserCallback):
    """In the controller of a Train run: hands the first worker's reports to `TuneTrialActor`."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._reports.put(metrics[0])
