"""The sweep from its plan to its comparison: the stages, in their order."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beamplatform.methods import get_method
from beamplatform.storage import join, local_folder
from beamplatform.sweep.evaluator import evaluator_actor
from beamplatform.sweep.preflight import Plan
from beamplatform.sweep.progress import SweepProgress
from beamplatform.training.worker import Destination
from beamplatform.trial import Trial

if TYPE_CHECKING:
    from beamplatform.suite import TrainingSection
    from beamplatform.tasks.evaluate import Evaluation
    from beamplatform.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster this sweep runs on; an autoscaling one may show its GPUs only when they are asked for."""

    cpus: int
    gpus: int

    def uses_gpu(self, training: TrainingSection) -> bool:
        return training.device == "gpu" or (training.device == "auto" and self.gpus > 0)

    def concurrent(self, training: TrainingSection, limit: int | None) -> int:
        """How many trials of this size fit at once, at most `limit`; at least one."""
        if self.uses_gpu(training) and not self.gpus:
            return limit or 1
        fit = self.cpus // (training.workers * training.cpus_per_worker)
        if self.uses_gpu(training):
            fit = min(fit, self.gpus // training.workers)
        return max(1, min(fit, limit or fit))


def start_ray() -> Cluster:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine without a dashboard."""
    import ray

    # Read when Ray's processes are made. (Ray's own ports cannot be bound to localhost; the token that Ray asks for by
    # default keeps others out.)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        ray.init(include_dashboard=False)
    total = ray.cluster_resources()
    return Cluster(cpus=int(total.get("CPU", 1)), gpus=int(total.get("GPU", 0)))


def run_sweep(
    plan: Plan,
    *,
    sweep: str,
    storage: str,
    tracker: Tracker,
    parent: str,
    concurrent: int | None,
    progress: SweepProgress,
) -> dict[int, str]:
    """Train, evaluate and record every trial of `plan`; Ray is started and shut down here.

    Args:
        sweep: the sweep's name; its files go to `storage`/`sweep`.
        tracker: prepared, with the run `parent` of this sweep open.
        concurrent: most trials at once; None = as many as fit.

    Returns:
        index -> reason, for the trials that failed.
    """
    import ray

    from beamplatform.sweep.train_stage import train_trials

    root = join(storage, sweep)
    destinations = []
    for trial in plan.trials:
        tags = trial_tags(trial, sweep)
        run_id = tracker.start_trial(parent, trial.name, trial.parameters(), tags)
        destinations.append(
            Destination(
                tracking_uri=tracker.uri,
                run_id=run_id,
                export=join(root, "trials", trial.name, "export"),
                storage=join(root, "train"),
            )
        )
    training = plan.trials[0].training
    cluster = start_ray()
    try:
        failed = train_trials(
            plan.trials,
            destinations,
            storage=root,
            concurrent=cluster.concurrent(training, concurrent),
            use_gpu=cluster.uses_gpu(training),
            progress=progress,
        )
        for index, why in failed.items():
            progress.failed(index, why)
            tracker.set_tags(destinations[index].run_id, {"error": why})
            tracker.finish(destinations[index].run_id, "FAILED")
        failed |= _evaluate(plan, destinations, failed, tracker, cluster, progress)
    finally:
        ray.shutdown()
    return failed


def trial_tags(trial: Trial, sweep: str) -> dict[str, Any]:
    """What a trial's run is found by in MLflow."""
    return {
        "method": trial.method,
        "seed": trial.seed,
        "sweep": sweep,
        "stage": "train",
        "preset": trial.preset,
        "configuration": trial.configuration,
    }


def _evaluate(
    plan: Plan,
    destinations: list[Destination],
    skip: Mapping[int, str],
    tracker: Tracker,
    cluster: Cluster,
    progress: SweepProgress,
) -> dict[int, str]:
    """Evaluate the trained trials one after the other through one engine, and finish their runs."""
    import ray

    from beamplatform.inference import Export
    from beamplatform.sweep.train_stage import reason

    todo = [index for index in range(len(plan.trials)) if index not in skip]
    failed: dict[int, str] = {}
    if not todo:
        return failed
    actor = None
    if plan.test:
        first = plan.trials[todo[0]]
        ranks = [
            get_method(t.method).hyperparameters.model_validate(t.hyperparameters).largest_rank
            for t in plan.trials
        ]
        actor = evaluator_actor(
            first.model,
            first.evaluation,
            plan.test,
            adapters=len(todo),
            largest_rank=max(ranks),
            cpus=cluster.cpus,
            use_gpu=cluster.uses_gpu(first.training),
        )
    for index in todo:
        trial, destination = plan.trials[index], destinations[index]
        score = None
        if actor is not None:
            progress.evaluating(index, 0)
            try:
                export = Export(get_method(trial.method).export_kind, destination.export)
                result: Evaluation = ray.get(actor.evaluate.remote(export))
            except ray.exceptions.RayError as error:
                failed[index] = reason(error)
                progress.failed(index, failed[index])
                tracker.set_tags(destination.run_id, {"error": failed[index]})
                tracker.finish(destination.run_id, "FAILED")
                continue
            record_evaluation(tracker, destination.run_id, result)
            progress.evaluating(index, sum(len(p) for p in result.predictions.values()))
            score = result.average
        tracker.log_folder(destination.run_id, local_folder(destination.export), "export")
        tracker.set_tags(destination.run_id, {"stage": "done"})
        tracker.finish(destination.run_id, "FINISHED")
        progress.done(index, score)
    return failed


def record_evaluation(tracker: Tracker, run_id: str, result: Evaluation) -> None:
    """Scores as metrics `eval/<task>` and `eval/average`, and every prediction as a table."""
    metrics = {f"eval/{task}": score for task, score in result.scores.items()} | {
        "eval/average": result.average
    }
    tracker.log_metrics(run_id, [(0, metrics)])
    for task, predictions in result.predictions.items():
        rows = [vars(prediction) for prediction in predictions]
        tracker.log_table(run_id, rows, f"predictions/{task}.jsonl")
