"""Passes the events of a sweep's trials on to MLflow, to the display and to the ledger."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamplatform.evaluation.predictions import rows as prediction_rows
from beamplatform.evaluation.predictions import write_predictions
from beamplatform.inference import Export
from beamplatform.io.storage import join, put_folder, read_text, remove_folder
from beamplatform.methods import get_method
from beamplatform.metrics import VALIDATION_LOSS, WORKERS, validation_curve
from beamplatform.sweep.plan.ledger import LedgerEntry, save_ledger
from beamplatform.sweep.plan.plan import Plan
from beamplatform.sweep.progress import SweepProgress, TrialProgress
from beamplatform.sweep.trials.train_stage import Job, Listener, Rows
from beamplatform.sweep.trials.trial_queue import TrialQueue
from beamplatform.tracking.environment import environment, environment_tags
from beamplatform.tracking.runs import NOTE
from beamplatform.tracking.writer import MlflowWriter
from beamplatform.training.run import METRICS_FILE, TRIAL_FILE
from beamplatform.training.worker import RAY, Destination

if TYPE_CHECKING:
    from beamplatform.evaluation.scores import Evaluation
    from beamplatform.tracking.runs import TrialRecord

log = logging.getLogger(__name__)

_ATTEMPTS = 3
"""A trial fails when its process is lost this often, for instance with nodes that a cloud takes back."""


class TrialEvents(Listener):
    """The events of one sweep's trials. A trial is identified by its index in the queue.

    Args:
        storage: the whole storage; this sweep's files are in the subfolder with its name.
        writer: writes to MLflow.
        parent: id of the sweep's own run in MLflow.
        earlier: the ledger's entries; those that belong to the plan are put into the queue.
        again: whether to try failed trials again.

    Attributes:
        exports: each trial's exported model, by index.
        evaluate: called with the index of each trial whose model is to be evaluated; None if the plan has no tests.
    """

    def __init__(
        self,
        plan: Plan,
        sweep: str,
        storage: str,
        writer: MlflowWriter,
        parent: str,
        progress: SweepProgress,
        earlier: Sequence[LedgerEntry] = (),
        *,
        again: bool = True,
    ) -> None:
        self._plan = plan
        self._sweep = sweep
        self._storage = storage
        self._writer = writer
        self._parent = parent
        self._progress = progress
        self._provenance = environment_tags(environment())
        self._unsaved = False
        self._losses: Counter[int] = Counter()
        self.exports: list[Export] = []
        self.evaluate: Callable[[int], None] | None = None
        current, self._superseded = plan.split(earlier)
        for entry in current:
            self._recover(entry)
        self.trial_queue = TrialQueue(plan, current, self._begin, again=again)

    # -- trials begin --------------------------------------------------------------------------------------

    def job(self, index: int) -> Job:
        entry = self.trial_queue.entries[index]
        return Job(index, entry.trial, self._destination(entry))

    def take_up(self, runs: Mapping[str, TrialRecord]) -> list[int]:
        """Go on with the trials of an earlier part of the sweep; return the indices of those to evaluate.

        Args:
            runs: MLflow runs by the names of their trials.
        """
        waiting = []
        for index, entry in enumerate(self.trial_queue.entries):
            run = runs.get(entry.trial.name)
            self._show(entry)
            if run is None:
                self._writer.begin(self._parent, entry.trial.name, entry.trial.parameters(), self._tags(entry))
            else:
                self._writer.resume(run.run_id)
            status = run.status if run is not None else ""
            if entry.state == "trained" and status == "FINISHED":
                self._progress.done_before(index)
            elif entry.state == "stopped":
                if run is None or status != "KILLED" or not run.why:  # the store was away when the trial stopped
                    self._writer.add(index, [(step, {VALIDATION_LOSS: loss}) for step, loss in entry.curve])
                    self._end_as_stopped(index, entry.why)
                self._progress.ended_before(index, "stopped")
            elif entry.state == "failed":
                if status != "FAILED":  # the store was away when the trial failed
                    self._end_as_failed(index, entry.why)
                self._progress.ended_before(index, "failed")
            else:
                if run is not None:
                    self._writer.reopen(index)
                if entry.state == "trained":
                    # The driver may have died after the training, before it recorded the last metrics.
                    self._writer.add(index, self._exported_rows(entry))
                    self._progress.trained(index)
                    waiting.append(index)
        self.save()
        return waiting

    def new_contexts(self, runs: Iterable[TrialRecord]) -> dict[str, str]:
        """Map the id of each run that has joined or left this plan to its new context."""
        current = {entry.trial.name for entry in self.trial_queue.entries}
        outdated = {entry.trial.name for entry in self._superseded} - current
        now = self._plan.context
        joined = {run.run_id: now for run in runs if run.name in current and run.context != now}
        return joined | {run.run_id: "superseded" for run in runs if run.name in outdated and run.context == now}

    def _begin(self, index: int, entry: LedgerEntry) -> None:
        self._show(entry)
        self.save()  # before the run begins, or a resumed sweep would begin it twice
        self._writer.begin(self._parent, entry.trial.name, entry.trial.parameters(), self._tags(entry))

    def _show(self, entry: LedgerEntry) -> None:
        self.exports.append(Export(get_method(entry.trial.method).export_kind, self._destination(entry).export))
        steps = entry.trial.total_steps(self._plan.train_examples)
        questions = self._plan.questions if entry.weights else 0
        self._progress.add(TrialProgress(entry.trial.name, steps, questions))

    def _recover(self, entry: LedgerEntry) -> None:
        """Mark a trial with an export as trained: the driver may have died before it could do so."""
        if entry.state == "running" and read_text(join(self._destination(entry).export, TRIAL_FILE)) is not None:
            entry.state = "trained"
            entry.curve = validation_curve(self._exported_rows(entry))

    def _exported_rows(self, entry: LedgerEntry) -> list[tuple[int, dict[str, float]]]:
        rows = json.loads(read_text(join(self._destination(entry).export, METRICS_FILE)) or "[]")
        return [(step, metrics) for step, metrics in rows]

    def _destination(self, entry: LedgerEntry) -> Destination:
        root = join(self._storage, self._sweep)
        export = join(root, "trials", entry.trial.name, "export")
        # A model that will not be evaluated is not written.
        return Destination(export, join(root, RAY), weights=entry.weights)

    def _tags(self, entry: LedgerEntry) -> dict[str, Any]:
        """The tags by which MLflow finds the trial's run, and the location of its exported model."""
        trial = entry.trial
        return {
            "method": trial.method,
            "seed": trial.seed,
            "sweep": self._sweep,
            "stage": "train",
            "role": entry.role,
            "preset": trial.preset,
            "configuration": trial.configuration,
            "context": self._plan.context,
            "export": self._destination(entry).export,
            "data.fingerprint": trial.fingerprint,
            "code": trial.code,
        } | self._provenance

    def save(self) -> None:
        """Write the ledger. A full or lost storage must not end the trials, so the next event tries again."""
        try:
            save_ledger(self._storage, self._sweep, [*self._superseded, *self.trial_queue.entries])
            self._unsaved = False
        except Exception as error:  # a disk or an object store may raise any error
            log.error("the ledger of the sweep cannot be written: %s", error)
            if not self._unsaved:
                self._progress.tell(f"The ledger in {join(self._storage, self._sweep)} cannot be written ({error}); "
                                    "until it can, an interrupted sweep would forget what happened since")  # fmt: skip
            self._unsaved = True

    # -- training ------------------------------------------------------------------------------------------

    def running(self, index: int) -> None:
        self._progress.running(index)

    def reported(self, index: int, step: int, total_steps: int, loss: float | None, rows: Rows) -> None:
        for _, metrics in rows:
            if WORKERS in metrics:
                self.trial_queue.workers[index] = int(metrics[WORKERS])
        self.trial_queue.started(index)
        self._progress.advance(index, step, loss)
        if rows:
            self._writer.add(index, rows)
        for at, validation_loss in validation_curve(rows):
            self.trial_queue.measured(index, at, validation_loss)

    def trained(self, index: int) -> None:
        self.trial_queue.ended(index, "trained")
        self.save()
        self._progress.trained(index)
        self.answer(index)

    def stopped(self, index: int, why: str) -> None:
        self.trial_queue.ended(index, "stopped", why)
        self.save()
        self._end_as_stopped(index, why)
        self._progress.stopped(index, why)

    def failed(self, index: int, why: str) -> None:
        """Record that the trial failed in training."""
        self.trial_queue.ended(index, "failed", why)
        self.save()
        self.unanswered(index, why)

    def clear(self) -> None:
        """Remove the checkpoints of stopped trials, because these trials are never resumed."""
        for entry in self.trial_queue.entries:
            if entry.state == "stopped":
                self._remove(self._destination(entry).checkpoints)

    def clear_ray(self) -> None:
        """Remove Ray's own files. They are kept until the end because they may explain errors and lost processes."""
        self._remove(join(self._storage, self._sweep, RAY))

    def _remove(self, folder: str) -> None:
        try:
            remove_folder(folder)
        except Exception as error:  # an object store may raise any error, and nothing depends on the removal
            log.warning("%s stays: %s", folder, error)

    def lost(self, index: int, why: str) -> None:
        self._losses[index] += 1
        if self._losses[index] < _ATTEMPTS:
            log.warning("%s is begun again: %s", self.trial_queue.entries[index].trial.name, why)
            self.trial_queue.again(index)
        else:
            self.failed(index, why)

    def _end_as_stopped(self, index: int, why: str) -> None:
        self._writer.set_tags(index, {"stopped": why})
        self._writer.finish(index, "KILLED")

    # -- evaluation ----------------------------------------------------------------------------------------

    def answer(self, index: int) -> None:
        """Evaluate the model of a trained trial, or finish the trial if its model is not evaluated."""
        if self.evaluate is not None and self.trial_queue.entries[index].weights:
            self.evaluate(index)
        else:
            self._done(index)

    def evaluating(self, index: int, answered: int) -> None:
        if not answered:
            self._writer.set_tags(index, {"stage": "evaluate"})
        self._progress.evaluating(index, answered)

    def unanswered(self, index: int, why: str) -> None:
        """Record that the trial failed, in training or in evaluation: its model gets no scores."""
        self._end_as_failed(index, why)
        self._progress.failed(index, why)

    def _end_as_failed(self, index: int, why: str) -> None:
        self._writer.set_tags(index, {"error": why})
        self._writer.finish(index, "FAILED")

    def evaluated(self, index: int, result: Evaluation) -> None:
        """Record scores as metrics, notes about them as tags, and all predictions as tables and Parquet files."""
        trial = self.trial_queue.entries[index].trial
        self._writer.add(index, [(0, result.metrics(trial.evaluation.pass_at))])
        self._writer.set_tags(index, {NOTE + task: note for task, note in result.notes.items()})
        for task, predictions in result.predictions.items():
            self._writer.table(index, prediction_rows(predictions), f"predictions/{task}.json")
        location = join(self.exports[index].path.rpartition("/")[0], "predictions")
        _store_predictions(result, location)
        self._writer.folder(index, location, "predictions")
        self._done(index, result.average)

    def _done(self, index: int, average: float | None = None) -> None:
        """Finish the trial's run. An adapter becomes an artifact of the run; a merged model is too large."""
        if self.exports[index].kind == "adapter" and self.trial_queue.entries[index].weights:
            self._writer.folder(index, self.exports[index].path, "export")
        self._writer.set_tags(index, {"stage": "done"})
        self._writer.finish(index, "FINISHED")
        self._progress.done(index, average)


def _store_predictions(result: Evaluation, location: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        for task, predictions in result.predictions.items():
            write_predictions(predictions, Path(name) / f"{task}.parquet")
        put_folder(Path(name), location)
