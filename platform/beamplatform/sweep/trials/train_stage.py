"""Stage "train": Ray Tune runs the trials, each a Ray Train run of its own (`trial_run`)."""

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
"""Bytes that the process waiting for a trial's workers takes (Ray and torch imported)."""

Rows = Sequence[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class Job:
    """A trial to train; `index` is what it is called by."""

    index: int
    trial: Trial
    destination: Destination


class Jobs(Protocol):
    """Where the trials come from."""

    @property
    def finished(self) -> bool:
        """Whether there will be no further one, whatever the results of those that run."""

    def next(self) -> Job | None:
        """The one to train next; None: not now (ask again when one has ended), or never (`finished`)."""


class Listener:
    """Who is told what becomes of the trials, from the thread that calls `train_trials`; does nothing by itself."""

    def running(self, index: int) -> None:
        """It has its workers, or will have them soon."""

    def reported(self, index: int, step: int, total_steps: int, loss: float | None, rows: Rows) -> None:
        """Metrics by step, and the latest training loss."""

    def trained(self, index: int) -> None:
        """To its end, and exported."""

    def stopped(self, index: int, why: str) -> None:
        """By the scheduler."""

    def failed(self, index: int, why: str) -> None:
        """For good."""

    def lost(self, index: int, why: str) -> None:
        """What ran it is gone, with its node perhaps; given out again, it would go on from its checkpoint."""
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
    """Train trials and export their models; Ray is running already.

    A trial is resolved when it begins, so Tune searches nothing: its searcher hands out what `jobs` says. When this
    returns, the trials' cores and GPUs are free again.

    Args:
        concurrent: most trials at once; None: as many as `jobs` gives.
        scheduler: may stop trials early (ASHA, median stopping); it must not pause them. Results have the trial's own
            `step`, which is the one to use as `time_attr` (Tune's own counter starts again with a restarted trial), and
            the latest `train/loss` and `validation/loss`, each from its first value on. A trial that has made its last
            step is not stopped any more: it exports.
        why_stopped: the scheduler's reason, by index.

    Raises:
        KeyboardInterrupt: at once on Ctrl-C, not after the trials that are running; the caller shuts Ray down.
    """
    if jobs.finished:
        return  # a sweep resumed when all had been trained; Tune fails without a trial
    # Tune's own handler would let running trials end first; here the caller shuts Ray down and records them.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # files that repeat what MLflow keeps
    # A trial has no validation loss before it first validates; a scheduler passes over such a result.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"

    def why(index: int, step: int) -> str:
        return why_stopped(index) or f"stopped by {_name(scheduler)} at step {step}"

    tuner = tune.Tuner(
        # The driver of a Train run only waits, so the cores and GPUs are its workers'. Ray refuses an empty request,
        # and a share of a core would leave the last core unusable; memory is what the process really takes.
        tune.with_resources(tune.with_parameters(TuneTrialActor, use_gpu=use_gpu), {"memory": DRIVER_MEMORY}),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the searcher says so
            search_alg=_QueueSearcher(jobs),
            max_concurrent_trials=concurrent,
            scheduler=scheduler,
            trial_dirname_creator=lambda trial: f"{trial.config[TRIAL]['method']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",  # a name that is used again would take up the old experiment
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
    telling = [line for line in lines if "Error" in line.split(" ")[0] or "Exception" in line.split(" ")[0]]
    return (telling or lines or [type(error).__name__])[-1]


def _error_of(trial: TuneTrial) -> BaseException | None:
    """Why a trial ended, from the driver's disk: it reaches the storage later."""
    pickled, text = trial.pickled_error_file, trial.error_file
    try:
        return cast(BaseException, ray.cloudpickle.loads(Path(pickled).read_bytes())) if pickled else None
    except Exception:  # an error of a library's own may not come back as what it was
        return RuntimeError(Path(text).read_text(encoding="utf-8")) if text and Path(text).exists() else None


def is_lost(error: BaseException | None) -> bool:
    """Whether what ran a trial is gone: Tune's actor for it, or its Train run's controller, whose loss that tells."""
    lost = (RayActorError, NodeDiedError, OwnerDiedError)
    return isinstance(error, lost) or (isinstance(error, RayTaskError) and isinstance(error.cause, lost))


def _name(scheduler: TrialScheduler | None) -> str:
    name = type(scheduler).__name__.removesuffix("Scheduler")
    return {"AsyncHyperBand": "ASHA", "NoneType": "Tune"}.get(name, name)


class _NoTuneState:
    """Tune writes its searcher and its callbacks into the experiment's state, which is never read: the ledger is.

    (A terminal, a thread and a lock cannot be written, either.)
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _QueueSearcher(_NoTuneState, Searcher):
    """Tune's searcher: a trial's configuration is the trial."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self._jobs = jobs

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self._jobs.next()
        if job is None:
            return str(Searcher.FINISHED) if self._jobs.finished else None
        return {INDEX: job.index, TRIAL: job.trial.model_dump(mode="json"), DESTINATION: job.destination}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # the callbacks tell more

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Events(_NoTuneState, Callback):
    """Tune's events, passed on."""

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
