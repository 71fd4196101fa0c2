"""Stage "train": Ray Tune runs the trials, each as a Ray Train run of its own (see `tune_actor`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import ray
from ray import tune
from ray.exceptions import NodeDiedError, OwnerDiedError, RayActorError, RayTaskError
from ray.tune import Callback
from ray.tune.search import Searcher

from beamplatform.config.trial import Trial
from beamplatform.metrics import TRAIN_LOSS
from beamplatform.sweep.cluster.placement_groups import Reaper, settle
from beamplatform.sweep.trials.tune_actor import DESTINATION, EXPORTED, INDEX, TRIAL, TuneTrialActor
from beamplatform.training.worker import Destination

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.schedulers import TrialScheduler

DRIVER_MEMORY = 300 * 2**20
"""Memory in bytes of a Train run's driver process: it has imported Ray and torch, and waits for the workers."""

Rows = Sequence[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class Job:
    """A trial to train; `index` identifies it to the listener."""

    index: int
    trial: Trial
    destination: Destination


class Jobs(Protocol):
    """Source of the trials to train."""

    @property
    def finished(self) -> bool:
        """Whether no further trial will come, whatever the results of the running ones."""

    def next(self) -> Job | None:
        """Return the trial to train next, or None.

        None means that there is no trial now (ask again when one has ended), or that there will be none (`finished`).
        """


class Listener:
    """Receives the events of the trials, in the thread that calls `train_trials`. This base class ignores them."""

    def running(self, index: int) -> None:
        """The trial has its workers, or will have them soon."""

    def reported(self, index: int, step: int, total_steps: int, loss: float | None, rows: Rows) -> None:
        """The trial reported metrics by step, and its latest training loss."""

    def trained(self, index: int) -> None:
        """The trial was trained to its end and has exported its model."""

    def stopped(self, index: int, why: str) -> None:
        """The scheduler stopped the trial."""

    def failed(self, index: int, why: str) -> None:
        """The trial failed and will not run again."""

    def lost(self, index: int, why: str) -> None:
        """The trial's process was lost, perhaps with its node. A new process could go on from the checkpoint."""
        self.failed(index, why)


def train_trials(
    jobs: Jobs,
    listener: Listener,
    *,
    storage: str,
    concurrent: int | None = None,
    use_gpu: bool,
    scheduler: TrialScheduler | None = None,
    why_stopped: Callable[[int], str | None] = lambda index: None,
) -> None:
    """Train trials and export their models. Ray must be running.

    Tune does not choose the trials: its searcher takes the next trial from `jobs` each time one can begin. When this
    function returns, the trials' cores and GPUs are free again.

    Args:
        concurrent: most trials at once; None for as many as `jobs` gives.
        scheduler: may stop trials early (ASHA, median stopping), but must not pause them. Use the results' `step` as
            its `time_attr`, because Tune's own counter starts again when a trial restarts. Results also have the latest
            `train/loss` and `validation/loss`, once there is one. A trial that has made its last step is not stopped
            any more: it exports its model.
        why_stopped: returns the scheduler's reason for stopping the trial with an index, or None.

    Raises:
        KeyboardInterrupt: at once on Ctrl-C, not after the trials that are running; the caller shuts Ray down.
    """
    if jobs.finished:
        return  # a resumed sweep may have nothing left to train, and Tune fails without a trial
    # Tune's own handler would wait for running trials. Instead, the caller shuts Ray down and records these trials.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # their files repeat what MLflow keeps
    # A trial has no validation loss before its first validation; a scheduler ignores such results.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"

    def why(index: int, step: int) -> str:
        return why_stopped(index) or f"stopped by {_name(scheduler)} at step {step}"

    tuner = tune.Tuner(
        # The driver of a Train run only waits, so it leaves all cores and GPUs to the workers. Ray refuses an empty
        # request, and a share of a core would make the last core unusable. So the driver requests the memory it takes.
        tune.with_resources(tune.with_parameters(TuneTrialActor, use_gpu=use_gpu), {"memory": DRIVER_MEMORY}),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # unlimited: the searcher says when to end
            search_alg=_QueueSearcher(jobs),
            max_concurrent_trials=concurrent,
            scheduler=scheduler,
            trial_dirname_creator=lambda trial: f"{trial.config[TRIAL]['method']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",  # with a name used before, Tune would resume that experiment
            storage_path=storage,
            # Train runs write their own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Events(listener, why), Reaper()],
            verbose=0,
        ),
    )
    tuner.fit()
    settle()


def reason(error: BaseException | str) -> str:
    """The line of a nested Ray error that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    error_lines = [line for line in lines if "Error" in line.split(" ")[0] or "Exception" in line.split(" ")[0]]
    return (error_lines or lines or [type(error).__name__])[-1]


def _error_of(trial: TuneTrial) -> BaseException | None:
    """Load the error that ended a trial from the driver's disk, because the storage receives it later."""
    pickled, text = trial.pickled_error_file, trial.error_file
    try:
        return cast(BaseException, ray.cloudpickle.loads(Path(pickled).read_bytes())) if pickled else None
    except Exception:  # a library's own class of error may not unpickle
        return RuntimeError(Path(text).read_text(encoding="utf-8")) if text and Path(text).exists() else None


def is_lost(error: BaseException | None) -> bool:
    """Whether a trial was lost because Tune's actor for it, or the controller of its Train run, is gone."""
    lost = (RayActorError, NodeDiedError, OwnerDiedError)
    return isinstance(error, lost) or (isinstance(error, RayTaskError) and isinstance(error.cause, lost))


def _name(scheduler: TrialScheduler | None) -> str:
    name = type(scheduler).__name__.removesuffix("Scheduler")
    return {"AsyncHyperBand": "ASHA", "NoneType": "Tune"}.get(name, name)


class _NoTuneState:
    """Keeps a searcher or callback out of the experiment's state that Tune writes.

    A sweep resumes from the ledger and never reads that state. Besides, terminals, threads and locks cannot be pickled.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _QueueSearcher(_NoTuneState, Searcher):
    """Tune's searcher: hands out the trials of `jobs`, each as a Tune configuration."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self._jobs = jobs

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self._jobs.next()
        if job is None:
            return str(Searcher.FINISHED) if self._jobs.finished else None
        return {INDEX: job.index, TRIAL: job.trial.model_dump(mode="json"), DESTINATION: job.destination}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # the callbacks report more

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Events(_NoTuneState, Callback):
    """Passes Tune's events on to the listener."""

    def __init__(self, listener: Listener, why: Callable[[int, int], str]) -> None:
        self._listener = listener
        self._why = why

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._listener.running(trial.config[INDEX])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        rows = result.get("rows") or ()
        if "step" in result or rows:
            step, total = result.get("step", 0), result.get("total_steps", 0)
            self._listener.reported(trial.config[INDEX], step, total, result.get(TRAIN_LOSS), rows)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        error = _error_of(trial)
        tell = self._listener.lost if is_lost(error) else self._listener.failed
        tell(trial.config[INDEX], reason(error or "it failed, and Ray does not say why"))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        index = trial.config[INDEX]
        if trial.last_result.get(EXPORTED):
            self._listener.trained(index)
        else:
            self._listener.stopped(index, self._why(index, trial.last_result.get("step", 0)))
