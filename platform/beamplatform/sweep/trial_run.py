"""One trial under Ray Tune: an actor whose Train run goes on in a thread, and ends when Tune ends the actor."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Collection, Sequence
from typing import Any

import ray
from ray import tune
from ray.train import ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.util.queue import Queue

from beamplatform.errors import UserError
from beamplatform.metrics import TRAIN_LOSS, VALIDATION_LOSS
from beamplatform.training.worker import fit
from beamplatform.trial import Trial

log = logging.getLogger(__name__)

INDEX, TRIAL, DESTINATION = "index", "trial", "destination"
"""What Tune's configuration of a trial holds."""

EXPORTED = "exported"
_LOSSES = (TRAIN_LOSS, VALIDATION_LOSS)


class TrialRun(tune.Trainable):
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
                fit(
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
    """In the controller of a Train run: hands the first worker's reports to `TrialRun`."""

    def __init__(self, reports: Queue) -> None:
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._reports.put(metrics[0])


class ResilientTrainer(TorchTrainer):
    """Ray's trainer, except that it tries again only what may go well, and leaves nothing behind when it is killed."""

    def _create_default_callbacks(self) -> list[Any]:
        # Ray's cleaner is a detached actor: it outlives the sweep, and asks the dashboard. `groups` does its work.
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = _RetryLostWorkers(self.run_config.failure_config)
        if self.scaling_config.elasticity_enabled:
            counts = Trial.model_validate(self.train_loop_config["trial"]).training.worker_counts
            arguments["scaling_policy"] = _WholeShares(self.scaling_config, counts)
        return super()._initialize_and_run_controller(**arguments)


class _WholeShares(ElasticScalingPolicy):
    """As many workers as there is room for, of those numbers that share the global batch evenly."""

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._counts = list(counts)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._counts if count <= room), default=0)


class _RetryLostWorkers(DefaultFailurePolicy):
    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if comes_again(getattr(training_failed_error, "worker_failures", {}).values()):
            log.error("not tried again, because it would come again: %s", training_failed_error)
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


_CERTAIN = (FloatingPointError, ValueError, TypeError, LookupError, AttributeError, ImportError, UserError)
_CERTAIN_ERRNO = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip


def comes_again(failures: Collection[BaseException]) -> bool:
    """Whether workers that failed in this way would fail again: a loss that is not a number, a full disk, a bug."""
    if any(isinstance(failure, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError) for failure in failures):
        return False  # a worker was lost, and the others' errors may follow from that
    return any(
        isinstance(failure, _CERTAIN) or (isinstance(failure, OSError) and failure.errno in _CERTAIN_ERRNO)
        for failure in failures
    )
