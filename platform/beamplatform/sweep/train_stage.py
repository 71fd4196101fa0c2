"""Stage "train": Ray Tune runs the trials, each a Ray Train run of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback

from beamplatform.sweep.progress import SweepProgress
from beamplatform.sweep.recorder import Recorder
from beamplatform.training.worker import Destination, fit
from beamplatform.trial import Trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

DRIVER_MEMORY = 300 * 2**20
"""Bytes that the process waiting for a trial's workers takes (Ray and torch imported)."""

_INDEX = "trial"


def train_trials(
    trials: Sequence[Trial],
    destinations: Sequence[Destination],
    *,
    storage: str,
    concurrent: int,
    use_gpu: bool,
    progress: SweepProgress,
    recorder: Recorder,
) -> dict[int, str]:
    """Train every trial and export its model; Ray is running already.

    The trials are resolved beforehand, so Tune's search space is the list of their indices.

    Returns:
        index -> reason, for the trials that failed; the others have trained and exported.

    Raises:
        KeyboardInterrupt: at once on Ctrl-C, not after the trials that are running.
    """
    # Tune's own handler would let running trials end first; here the caller shuts Ray down and records them.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # files that repeat what MLflow keeps

    def run(config: dict[str, Any]) -> None:
        from ray.tune.integration.ray_train import TuneReportCallback

        index = config[_INDEX]
        fit(trials[index], destinations[index], use_gpu=use_gpu, callbacks=[TuneReportCallback()])

    tuner = tune.Tuner(
        # The driver of a Train run only waits, so the cores and GPUs are its workers'. Ray refuses an empty request,
        # and a share of a core would leave the last core unusable; memory is what the process really takes.
        tune.with_resources(run, {"memory": DRIVER_MEMORY}),
        param_space={_INDEX: tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(
            name="tune", storage_path=storage, callbacks=[_Events(progress, recorder)], verbose=0
        ),
    )
    failed = {}
    for result in tuner.fit():
        if result.error is not None:
            assert result.config is not None
            failed[result.config[_INDEX]] = reason(result.error)
    return failed


def reason(error: BaseException) -> str:
    """The line of a nested Ray error that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line.split(" ")[0] or "Exception" in line.split(" ")[0]]
    return (telling or lines or [type(error).__name__])[-1]


class _Events(Callback):
    """Tune's events, passed on to the progress display and to the tracking store."""

    def __init__(self, progress: SweepProgress, recorder: Recorder) -> None:
        self._progress = progress
        self._recorder = recorder

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks into the experiment's state; a terminal cannot be written, nor is wanted there."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._progress.running(trial.config[_INDEX])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if "rows" not in result:
            return
        index = trial.config[_INDEX]
        losses = [metrics["train/loss"] for _, metrics in result["rows"] if "train/loss" in metrics]
        self._progress.advance(index, result["step"], losses[-1] if losses else None)
        self._recorder.add(index, result["rows"])

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # The reason is told when all have ended: Tune gives it with the results.
        self._progress.ended_early(trial.config[_INDEX])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._progress.trained(trial.config[_INDEX])
