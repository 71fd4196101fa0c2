"""Stage "train": Ray Tune runs the trials, each a Ray Train run of its own (`trial_run`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback

from beamplatform.sweep.groups import Reaper, settle
from beamplatform.sweep.progress import SweepProgress
from beamplatform.sweep.recorder import Recorder
from beamplatform.sweep.trial_run import EXPORTED, INDEX, TrialRun
from beamplatform.training.worker import Destination
from beamplatform.trial import Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.schedulers import TrialScheduler

DRIVER_MEMORY = 300 * 2**20
"""Bytes that the process waiting for a trial's workers takes (Ray and torch imported)."""


@dataclass(frozen=True)
class Outcome:
    """What became of the trials that have not trained to their end; all others have trained and exported.

    Attributes:
        failed: index -> what went wrong.
        stopped: index -> who stopped the trial, and where.
    """

    failed: dict[int, str]
    stopped: dict[int, str]


def train_trials(
    trials: Sequence[Trial],
    destinations: Sequence[Destination],
    indices: Sequence[int] | None = None,
    *,
    storage: str,
    concurrent: int,
    use_gpu: bool,
    progress: SweepProgress,
    recorder: Recorder,
    scheduler: TrialScheduler | None = None,
    on_trained: Callable[[int], None] = lambda index: None,
) -> Outcome:
    """Train every trial and export its model; Ray is running already.

    The trials are resolved beforehand, so Tune's search space is the list of their indices. When this returns, the
    trials' cores and GPUs are free again.

    Args:
        indices: of the trials to train; all by default.
        scheduler: may stop trials early (ASHA, median stopping); it must not pause them. Results have the trial's own
            `step`, which is the one to use as `time_attr` (Tune's own counter starts again with a restarted trial), and
            the latest `train/loss` and `validation/loss`, each from its first value on. A trial that has made its last
            step is not stopped any more: it exports.
        on_trained: told each trial that has exported its model, as soon as it has.

    Raises:
        KeyboardInterrupt: at once on Ctrl-C, not after the trials that are running; the caller shuts Ray down.
    """
    if indices is not None and not indices:
        return Outcome({}, {})  # a sweep resumed when all had been trained; Tune fails on an empty search space
    # Tune's own handler would let running trials end first; here the caller shuts Ray down and records them.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # files that repeat what MLflow keeps
    # A trial has no validation loss before it first validates; a scheduler passes over such a result.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"

    trainable = tune.with_parameters(TrialRun, trials=list(trials), destinations=list(destinations), use_gpu=use_gpu)
    tuner = tune.Tuner(
        # The driver of a Train run only waits, so the cores and GPUs are its workers'. Ray refuses an empty request,
        # and a share of a core would leave the last core unusable; memory is what the process really takes.
        tune.with_resources(trainable, {"memory": DRIVER_MEMORY}),
        param_space={INDEX: tune.grid_search(list(range(len(trials)) if indices is None else indices))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, scheduler=scheduler),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",  # a name that is used again would take up the old experiment
            storage_path=storage,
            # Train runs write their own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Events(progress, recorder, on_trained), Reaper()],
            verbose=0,
        ),
    )
    outcome = Outcome({}, {})
    for result in tuner.fit():
        assert result.config is not None
        index = result.config[INDEX]
        if result.error is not None:
            outcome.failed[index] = reason(result.error)
        elif not (result.metrics or {}).get(EXPORTED):
            step = (result.metrics or {}).get("step", 0)
            outcome.stopped[index] = f"stopped by {_name(scheduler)} at step {step}"
    settle()
    return outcome


def reason(error: BaseException) -> str:
    """The line of a nested Ray error that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line.split(" ")[0] or "Exception" in line.split(" ")[0]]
    return (telling or lines or [type(error).__name__])[-1]


def _name(scheduler: TrialScheduler | None) -> str:
    name = type(scheduler).__name__.removesuffix("Scheduler")
    return {"AsyncHyperBand": "ASHA", "NoneType": "Tune"}.get(name, name)


class _Events(Callback):
    """Tune's events, passed on to the progress display and to the tracking store."""

    def __init__(self, progress: SweepProgress, recorder: Recorder, on_trained: Callable[[int], None]) -> None:
        self._progress = progress
        self._recorder = recorder
        self._on_trained = on_trained

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks into the experiment's state; a terminal cannot be written, nor is wanted there."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._progress.running(trial.config[INDEX])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        index = trial.config[INDEX]
        if "step" in result:
            self._progress.advance(index, result["step"], result.get("train/loss"))
        if result.get("rows"):
            self._recorder.add(index, result["rows"])

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # The reason is told when all have ended: Tune gives it with the results.
        self._progress.ended_early(trial.config[INDEX], stopped=False)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if trial.last_result.get(EXPORTED):
            self._progress.trained(trial.config[INDEX])
            self._on_trained(trial.config[INDEX])
        else:
            self._progress.ended_early(trial.config[INDEX], stopped=True)
