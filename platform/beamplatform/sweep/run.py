"""Runs a planned sweep: the stages in order, from the probe to the evaluation of the last trial."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beamplatform.cli.options import ANSWERS
from beamplatform.errors import UserError
from beamplatform.evaluation.evaluator import evaluator_actor
from beamplatform.io.storage import join
from beamplatform.sweep.cluster.cluster import Cluster, cluster_now, start_ray
from beamplatform.sweep.cluster.health_check import check_storage
from beamplatform.sweep.plan.ledger import LedgerEntry
from beamplatform.sweep.plan.memory_check import GIB, check_memory, half_of, room_on_gpus, smallest_change
from beamplatform.sweep.plan.plan import Plan
from beamplatform.sweep.progress import SweepProgress
from beamplatform.sweep.trials.evaluate_stage import EvaluationStage
from beamplatform.tracking.writer import MlflowWriter
from beamplatform.training.worker import RAY

if TYPE_CHECKING:
    from beamplatform.sweep.trials.train_stage import Job
    from beamplatform.sweep.trials.trial_events import TrialEvents
    from beamplatform.sweep.trials.trial_queue import TrialQueue
    from beamplatform.tracking import Tracker


@dataclass(frozen=True)
class Result:
    """The outcome of a sweep.

    Attributes:
        entries: the sweep's trials.
        failed: index of each entry that failed in training or evaluation -> reason.
    """

    entries: Sequence[LedgerEntry]
    failed: Mapping[int, str]


def run_sweep(
    plan: Plan,
    *,
    sweep: str,
    storage: str,
    tracker: Tracker,
    parent: str,
    progress: SweepProgress,
    earlier: Sequence[LedgerEntry] = (),
    again: bool = True,
    concurrent: int | None = None,
    probe: bool = False,
    options: Collection[str] = (),
) -> Result:
    """Search, train, evaluate and record the trials of a plan. Starts Ray and shuts it down.

    If the tracking store goes away meanwhile, the sweep goes on and waits for it at the end; see `MlflowWriter.close`.

    Args:
        sweep: the sweep's name; its files go to `storage`/`sweep`.
        tracker: a prepared tracker.
        parent: id of this sweep's own run in `tracker`, which is open.
        earlier: the ledger's entries if the sweep was begun before. Finished trials are left alone, and trained ones
            are only evaluated.
        again: whether to try failed trials of `earlier` again.
        concurrent: most trials at once; None for as many as fit.
        probe: whether to time a few steps first and tell the user how long the sweep will take.
        options: task options (`Task.options`) beside the suite's own.

    Raises:
        UserError: the largest trial does not fit the cluster's GPUs.
        ConnectionError: the trials are done, but the store is still away; the message says what it lacks.
        RuntimeError: the trials are done, but the store refused some of the records.
    """
    import ray

    from beamplatform.sweep.trials.trial_events import TrialEvents

    runs = {run.name: run for run in tracker.trial_runs(sweep=sweep, every_status=True)} if earlier else {}
    with MlflowWriter(tracker, []) as writer:  # closed after Ray's shutdown: nodes need not wait for a store
        events = TrialEvents(plan, sweep, storage, writer, parent, progress, earlier, again=again)
        for run_id, context in events.new_contexts(runs.values()).items():
            tracker.set_tags(run_id, {"context": context})
        trial_queue, waiting = events.trial_queue, events.take_up(runs)
        if trial_queue.finished and not waiting:
            return Result(trial_queue.entries, _failed(trial_queue))
        cluster = start_ray()
        training = plan.preset.training
        most = cluster.concurrent(training, concurrent)
        if plan.search.budget is None:  # with a budget, the number of trials is unknown
            most = min(most, max(1, trial_queue.to_come))
        try:
            check_storage(storage)
            if cluster.uses_gpu(training) and cluster.gpus:
                check_memory(plan, room_on_gpus(training))
            if probe:
                _probe(plan, cluster, most, join(storage, sweep), progress)
        except BaseException:
            ray.shutdown()
            raise
        stage = evaluation_stage(plan, events, cluster, most, join(storage, ANSWERS), options)
        events.evaluate = stage.add if plan.test else None
        try:
            for index in waiting:
                events.answer(index)
            _train(plan, _Jobs(events, stage, concurrent), join(storage, sweep, RAY), cluster.uses_gpu(training))
            failed_evaluations = stage.finish()
        finally:
            stage.abandon()
            ray.shutdown()
            events.save()  # including the hours of interrupted trials
            events.clear()
        events.clear_ray()
        return Result(trial_queue.entries, _failed(trial_queue) | failed_evaluations)


def _failed(trial_queue: TrialQueue) -> dict[int, str]:
    return {index: entry.why for index, entry in enumerate(trial_queue.entries) if entry.state == "failed"}


def _probe(plan: Plan, cluster: Cluster, concurrent: int, storage: str, progress: SweepProgress) -> None:
    from ray.train import TrainingFailedError

    from beamplatform.sweep.plan.timing_probe import STEPS, run_probe
    from beamplatform.sweep.trials.train_stage import reason

    training = plan.preset.training
    try:
        probe = run_probe(plan, storage, use_gpu=cluster.uses_gpu(training))
    except TrainingFailedError as error:
        if "out of memory" in str(error).lower():
            largest = plan.largest
            change = smallest_change(plan, largest, half_of(largest))
            raise UserError(f"{largest.trial.method} ran out of memory in its first steps; try {change}") from None
        progress.tell(f"The probe of {STEPS} steps failed, and its trials may as well: {reason(error)}")
        return
    seconds = probe.training_seconds(plan, concurrent)
    duration = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
    most = "at most " if plan.search.stops_early else "about "
    progress.tell(
        f"Probe ({min(STEPS, plan.steps(probe.method))} steps of {probe.method}): {probe.seconds:.3g} s a step, "
        f"{probe.start:.0f} s to start, {probe.memory / GIB:.2f} GiB for a worker at most "
        f"(estimated {probe.expected / GIB:.2f} GiB). Training takes {most}{duration}, {concurrent} at a time; "
        "the test questions come on top."
    )


def _train(plan: Plan, jobs: _Jobs, storage: str, use_gpu: bool) -> None:
    from beamplatform.sweep.trials.early_stopping import scheduler_of
    from beamplatform.sweep.trials.train_stage import train_trials

    scheduler = scheduler_of(plan, jobs.events.trial_queue.entries)
    train_trials(
        jobs,
        jobs.events,
        storage=storage,
        use_gpu=use_gpu,
        scheduler=scheduler,
        why_stopped=scheduler.reasons.get if scheduler is not None else lambda index: None,
    )


class _Jobs:
    """Hands out the queue's trials to the stage "train", as many at a time as the cluster has room for now.

    Args:
        stage: the evaluation stage. The cores and GPUs that it reserves are not given to trials.
        limit: most trials at once.
    """

    def __init__(self, events: TrialEvents, stage: EvaluationStage, limit: int | None) -> None:
        self.events = events
        self._stage = stage
        self._limit = limit

    @property
    def finished(self) -> bool:
        trial_queue = self.events.trial_queue
        return trial_queue.finished and not trial_queue.running  # a trial whose node is lost begins again

    def next(self) -> Job | None:
        trial_queue = self.events.trial_queue
        if trial_queue.finished:
            return None  # Tune calls this at every step, so do not query the cluster
        room = cluster_now()
        # In a shared cluster, the resources of a started engine are no longer among the free ones.
        if not (os.environ.get("RAY_ADDRESS") and self._stage.started):
            room = room.less(*self._stage.reserved)
        if trial_queue.running >= room.concurrent(trial_queue.plan.preset.training, self._limit):
            return None
        index = trial_queue.next()
        return None if index is None else self.events.job(index)


def evaluation_stage(
    plan: Plan, events: TrialEvents, cluster: Cluster, concurrent: int, store: str, options: Collection[str]
) -> EvaluationStage:
    """Make the evaluation stage. It runs beside training if training leaves a GPU (or cores) free.

    Args:
        concurrent: number of trials that train at once.
        store: the storage for the models' answers.
        options: task options beside the suite's own.
    """
    training = plan.preset.training
    use_gpu, spare = cluster.uses_gpu(training), cluster.spare(training, concurrent)
    cpus = training.cpus_per_worker if use_gpu else min(spare or cluster.node_cpus, cluster.node_cpus)

    def actor() -> Any:
        return evaluator_actor(
            plan.preset.model,
            plan.preset.evaluation,
            plan.test,
            adapters=max(1, plan.adapters),
            largest_rank=plan.largest_rank,
            store=store,
            options=options,
            cpus=cpus,
            use_gpu=use_gpu,
        )

    reserved = (cpus, int(use_gpu)) if spare else (0, 0)
    return EvaluationStage(events.exports, events, actor, beside_training=bool(spare), reserved=reserved)
