"""The sweep from its plan to its comparison: the stages, in their order."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.inference import Export
from beamplatform.methods import get_method
from beamplatform.storage import join, put_folder, read_text
from beamplatform.sweep.evaluate_stage import EvaluationStage
from beamplatform.sweep.evaluator import evaluator_actor
from beamplatform.sweep.preflight import Plan
from beamplatform.sweep.progress import SweepProgress
from beamplatform.sweep.recorder import Recorder
from beamplatform.tasks.predictions import rows, write_predictions
from beamplatform.tracking.environment import environment, environment_tags
from beamplatform.tracking.runs import NOTE
from beamplatform.training.run import METRICS, TRIAL
from beamplatform.training.worker import Destination
from beamplatform.trial import Trial

if TYPE_CHECKING:
    from beamplatform.suite import TrainingSection
    from beamplatform.tasks import Evaluation
    from beamplatform.tracking import Tracker

log = logging.getLogger(__name__)

ANSWERS = "answers"
"""The folder below a storage where all its sweeps keep what models answered."""


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster this sweep runs on; an autoscaling one may show its GPUs only when they are asked for.

    Attributes:
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes.
        node_cpus: CPU cores of the largest node; no process can have more.
    """

    cpus: int
    gpus: int
    node_cpus: int

    def uses_gpu(self, training: TrainingSection) -> bool:
        return training.device == "gpu" or (training.device == "auto" and self.gpus > 0)

    def spare(self, training: TrainingSection, concurrent: int) -> int:
        """GPUs, or else CPU cores, that this many trials at once leave free, as far as the cluster shows them now."""
        if self.uses_gpu(training):
            return max(0, self.gpus - concurrent * training.workers)
        return max(0, self.cpus - concurrent * training.workers * training.cpus_per_worker)

    def concurrent(self, training: TrainingSection, limit: int | None) -> int:
        """How many trials of this size fit at once, at most `limit`; at least one."""
        if self.uses_gpu(training) and not self.gpus:
            return limit or 1
        fit = self.cpus // (training.workers * training.cpus_per_worker)
        if self.uses_gpu(training):
            fit = min(fit, self.gpus // training.workers)
        return max(1, min(fit, limit or fit))


def start_ray() -> Cluster:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine, its dashboard on localhost only."""
    import ray

    # Read when Ray's processes are made. (Ray's own ports cannot be bound to localhost; the token that Ray asks for by
    # default keeps others out.)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no call made after a shutdown starts it again
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        # Without the dashboard Ray cannot tell that a trial's process has died, and keeps its cores reserved for ever.
        # "local": a new one, whatever an interrupted sweep has left on this machine.
        ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1")
    total = ray.cluster_resources()
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return Cluster(cpus=int(total.get("CPU", 1)), gpus=int(total.get("GPU", 0)), node_cpus=int(max(nodes, default=1)))


def run_sweep(
    plan: Plan,
    *,
    sweep: str,
    storage: str,
    tracker: Tracker,
    parent: str,
    concurrent: int | None,
    progress: SweepProgress,
    resume: bool = False,
    options: Collection[str] = (),
) -> dict[int, str]:
    """Train, evaluate and record every trial of `plan`; Ray is started and shut down here.

    A tracking store that goes away meanwhile ends nothing: the end waits for it, see `Recorder.close`.

    Args:
        sweep: the sweep's name; its files go to `storage`/`sweep`.
        tracker: prepared, with the run `parent` of this sweep open.
        concurrent: most trials at once; None = as many as fit.
        resume: the sweep was started before: trials that are done are left alone, trained ones only evaluated.
        options: of the tasks (`Task.options`), beside the suite's own.

    Returns:
        index -> reason, for the trials that failed.

    Raises:
        ConnectionError: the trials are done, but the store is still away; says what it lacks.
        RuntimeError: the trials are done, but the store refused some of what there is to record.
    """
    import ray

    from beamplatform.sweep.train_stage import train_trials

    root = join(storage, sweep)
    destinations = [
        Destination(export=join(root, "trials", trial.name, "export"), storage=join(root, "train"))
        for trial in plan.trials
    ]
    known = {run.name: run for run in tracker.trial_runs(sweep=sweep, every_status=True)} if resume else {}
    run_ids, done, trained = [], set(), set()
    provenance = environment_tags(environment())
    for index, (trial, destination) in enumerate(zip(plan.trials, destinations, strict=True)):
        run = known.get(trial.name)
        if run is not None and run.status == "FINISHED":
            done.add(index)
            progress.done_before(index)
        elif resume and read_text(join(destination.export, TRIAL)) is not None:
            trained.add(index)
        if run is None:
            tags = trial_tags(trial, sweep, destination.export) | provenance | {"data.fingerprint": plan.fingerprint}
            run_ids.append(tracker.start_trial(parent, trial.name, trial.parameters(), tags))
        else:
            run_ids.append(run.run_id)
            if index not in done:
                tracker.reopen(run.run_id)
    training = plan.trials[0].training
    exports = [
        Export(get_method(trial.method).export_kind, destination.export)
        for trial, destination in zip(plan.trials, destinations, strict=True)
    ]
    with Recorder(tracker, run_ids, resumed=resume) as recorder:  # outside Ray: nodes need not wait for a store
        records = Records(plan.trials, exports, recorder, progress)
        for index in trained:
            # The driver may have died between the end of the training and its last metrics.
            recorder.add(index, json.loads(read_text(join(destinations[index].export, METRICS)) or "[]"))
            progress.trained(index)
        if len(done) == len(plan.trials):
            return {}
        cluster = start_ray()
        todo = [index for index in range(len(plan.trials)) if index not in done | trained]
        concurrent = min(cluster.concurrent(training, concurrent), len(todo))
        stage = evaluation_stage(plan, records, cluster, concurrent, join(storage, ANSWERS), options)
        on_trained = stage.add if plan.test else records.done
        try:
            for index in trained:
                on_trained(index)
            outcome = train_trials(
                plan.trials,
                destinations,
                todo,
                storage=root,
                concurrent=concurrent,
                use_gpu=cluster.uses_gpu(training),
                progress=progress,
                recorder=recorder,
                on_trained=on_trained,
            )
            failed = dict(outcome.failed)
            for index, why in failed.items():
                records.failed(index, why)
            for index, why in outcome.stopped.items():
                records.stopped(index, why)
            failed |= stage.finish()
        finally:
            stage.abandon()
            ray.shutdown()
    return failed


def trial_tags(trial: Trial, sweep: str, export: str) -> dict[str, Any]:
    """What a trial's run is found by in MLflow, and where its exported model lies."""
    return {
        "method": trial.method,
        "seed": trial.seed,
        "sweep": sweep,
        "stage": "train",
        "preset": trial.preset,
        "configuration": trial.configuration,
        "export": export,
    }


@dataclass(frozen=True)
class Records:
    """What becomes of each trial, told to MLflow and to the display."""

    trials: list[Trial]
    exports: list[Export]
    recorder: Recorder
    progress: SweepProgress

    def evaluating(self, index: int, answered: int) -> None:
        if not answered:
            self.recorder.set_tags(index, {"stage": "evaluate"})
        self.progress.evaluating(index, answered)

    def failed(self, index: int, why: str) -> None:
        self.recorder.set_tags(index, {"error": why})
        self.recorder.finish(index, "FAILED")
        self.progress.failed(index, why)

    def stopped(self, index: int, why: str) -> None:
        self.recorder.set_tags(index, {"stopped": why})
        self.recorder.finish(index, "KILLED")
        self.progress.stopped(index, why)

    def evaluated(self, index: int, result: Evaluation) -> None:
        """Scores as metrics, what there is to know about them as tags, every prediction as a table and as Parquet."""
        self.recorder.add(index, [(0, result.metrics(self.trials[index].evaluation.pass_at))])
        self.recorder.set_tags(index, {NOTE + task: note for task, note in result.notes.items()})
        for task, predictions in result.predictions.items():
            self.recorder.table(index, rows(predictions), f"predictions/{task}.json")
        location = join(self.exports[index].path.rpartition("/")[0], "predictions")
        _store_predictions(result, location)
        self.recorder.folder(index, location, "predictions")
        self.done(index, result.average)

    def done(self, index: int, average: float | None = None) -> None:
        """The run is finished; an adapter becomes its artifact (a merged model is too large)."""
        if self.exports[index].kind == "adapter":
            self.recorder.folder(index, self.exports[index].path, "export")
        self.recorder.set_tags(index, {"stage": "done"})
        self.recorder.finish(index, "FINISHED")
        self.progress.done(index, average)


def _store_predictions(result: Evaluation, location: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        for task, predictions in result.predictions.items():
            write_predictions(predictions, Path(name) / f"{task}.parquet")
        put_folder(Path(name), location)


def evaluation_stage(
    plan: Plan, records: Records, cluster: Cluster, concurrent: int, store: str, options: Collection[str]
) -> EvaluationStage:
    """The evaluation of this sweep; it begins beside training where that leaves a GPU (or cores) free.

    Args:
        concurrent: trials that train at once.
        store: where answers are kept.
        options: of the tasks, beside the suite's own.
    """
    training = plan.trials[0].training
    use_gpu, spare = cluster.uses_gpu(training), cluster.spare(training, concurrent)

    def actor() -> Any:
        first = plan.trials[0]
        cpus = training.cpus_per_worker if use_gpu else min(spare or cluster.node_cpus, cluster.node_cpus)
        return evaluator_actor(
            first.model,
            first.evaluation,
            plan.test,
            adapters=sum(export.kind == "adapter" for export in records.exports) or 1,
            largest_rank=plan.largest_rank,
            store=store,
            options=options,
            cpus=cpus,
            use_gpu=use_gpu,
        )

    return EvaluationStage(records.exports, records, actor, beside_training=bool(spare))
