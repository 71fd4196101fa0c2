"""The work of `pipelines/evaluate.py` after it has read its input: scores models and shows the scores."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from beamplatform.data.quality import check_answers
from beamplatform.data.splits import test_records
from beamplatform.errors import UserError
from beamplatform.evaluation.evaluator import Evaluator
from beamplatform.evaluation.predictions import rows, write_predictions
from beamplatform.inference import Export, check_export
from beamplatform.inference.adapter_check import adapter_rank, read_adapter_config
from beamplatform.inference.identity import content_hash
from beamplatform.inference.vllm_engine import LARGEST_RANK
from beamplatform.io.redirect import output_to_file
from beamplatform.io.storage_check import check_writable, checked_location
from beamplatform.models.check import check_model
from beamplatform.models.loading import resolve_path
from beamplatform.tracking.runs import NOTE

if TYPE_CHECKING:
    from beamplatform.config.suite import Preset
    from beamplatform.evaluation.scores import Evaluation


LOG = Path("runs/evaluate.log")
"""The file that gets the output of the libraries."""

_TELL_EVERY = 30.0
"""Seconds between two progress lines, if there is no terminal for a progress bar."""


def score_exports(
    suite: str,
    preset: Preset,
    folders: Sequence[str],
    *,
    output: Path | None,
    store: str | None,
    tracking_uri: str | None = None,
    options: Collection[str] = (),
) -> int:
    """Score adapters and merged models, or else the base model, and print a table for each of them.

    Args:
        suite: name of the suite, which is also the MLflow experiment.
        folders: folders that each hold an adapter or a merged model; if there are none, the base model is scored.
        output: folder for scores.json and the predictions. Several models get subfolders, numbered in the given order.
        store: where answers are stored and looked up; None = nowhere.
        tracking_uri: URI of MLflow, where each model becomes a run.
        options: task options (`Task.options`) beside the suite's own.

    Returns:
        The exit code: 1 if a model could not be scored, else 0.

    Raises:
        UserError: there are no tasks or no data, or something is wrong with the base model, or with all adapters and
            merged models. It is raised before anything is loaded.
    """
    tasks = preset.evaluation.tasks
    if not tasks:
        raise UserError("this preset names no tasks; give --tasks A,B")
    store = checked_location("--answers", store) if store is not None else None
    for option, location in (("--output", output), ("--answers", store), ("the folder of the log", LOG.parent)):
        if location is not None:
            check_writable(option, str(location))
    base = resolve_path(preset.model.path)
    check_model(preset.model.path, content_hash(base))
    exports = [read_export(folder) for folder in folders]
    locations = [Path(folder).resolve() for folder in folders]
    if len(set(locations)) < len(locations):
        repeated = next(
            folder for folder, location in zip(folders, locations, strict=True) if locations.count(location) > 1
        )
        raise UserError(f"--adapter {repeated}: the same folder is named twice")
    fitting = _fitting(base, exports)
    configs = {e.path: read_adapter_config(Path(e.path)) for e in fitting if e.kind == "adapter"}
    ranks = [adapter_rank(Path(folder)) for folder in configs]
    records = test_records(preset.data, tasks, preset.evaluation.max_records)
    console = Console()
    for line in check_answers(tasks, records, preset.data):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    for folder, config in configs.items():
        made_for = str(config.get("base_model_name_or_path") or "")
        if made_for and _last(made_for) not in (_last(base), _last(preset.model.path)):
            text = f"note: {folder} says it was made for {made_for}, and is evaluated on {preset.model.path}"
            console.print(text, style="yellow", markup=False, soft_wrap=True)
    evaluator = Evaluator(
        preset.model,
        preset.evaluation,
        records,
        adapters=max(len(configs), 1),
        # An adapter whose rank is too large for vLLM is refused when its turn comes; the others are still scored.
        largest_rank=max([rank for rank in ranks if rank <= LARGEST_RANK] or ranks, default=1),
        store=store,
        options=options,
    )
    evaluator.check()
    writer = _RunWriter(suite, preset, tracking_uri, {**evaluator.about, "options": sorted(options)})
    console.print(
        f"{evaluator.about['engine']}, {evaluator.about['dtype']}. Log: {LOG}", highlight=False, soft_wrap=True
    )
    models: list[Export | None] = [*exports] or [None]
    try:
        failed = _ask(evaluator, models, sum(map(len, records.values())), preset, writer, output, console)
    except KeyboardInterrupt:
        if store is not None:
            text = f"stopped; the answers so far are kept in {store}: the same command goes on from there"
            print(text, file=sys.stderr)
        raise
    console.print(f"Predictions in the MLflow UI: {writer.ui}", highlight=False, soft_wrap=True)
    if output is not None:
        console.print(f"Scores and predictions: {output}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _fitting(base: str, exports: Sequence[Export]) -> list[Export]:
    """Return the exports that fit the base model; the errors of the others are reported when their turn comes.

    Raises:
        UserError: none of the exports fits.
    """
    fitting, wrong = [], []
    for export in exports:
        try:
            check_export(base, export)
            fitting.append(export)
        except UserError as error:
            wrong.append(str(error))
    if wrong and not fitting:
        raise UserError("; ".join(wrong))
    return fitting


def _ask(
    evaluator: Evaluator,
    models: Sequence[Export | None],
    questions: int,
    preset: Preset,
    writer: _RunWriter,
    output: Path | None,
    console: Console,
) -> int:
    """Score the models, and show and record the results; return the number of models that could not be scored.

    The output of the libraries goes to the log.
    """
    answered, failed, last_told = [0] * len(models), 0, time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with output_to_file(LOG) as terminal:
        live = Console(file=terminal, force_terminal=console.is_terminal, width=console.width)
        with Progress(*columns, console=live, transient=True) as progress:
            bar = progress.add_task("loading the model", total=questions * len(models))
            for event in evaluator.stream(models):
                index = event.index
                answered[index] = event.answered
                progress.update(bar, completed=sum(answered))
                if sum(answered):
                    progress.update(bar, description="questions")
                if not live.is_terminal and time.monotonic() - last_told > _TELL_EVERY:
                    last_told = time.monotonic()
                    live.print(f"{sum(answered)} of {questions * len(models)} questions answered", highlight=False)
                if isinstance(event.outcome, UserError):
                    failed += 1
                    live.print(str(event.outcome), style="red", markup=False, soft_wrap=True)
                elif event.outcome is not None:
                    export = models[index]
                    model = export.path if export is not None else None
                    _show(event.outcome, preset, model, live)
                    writer.keep(event.outcome, model, _output_folder(output, index, len(models)))
    return failed


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def read_export(folder: str) -> Export:
    """Return the export in a folder: a merged model if only a model's configuration is there, else an adapter."""
    path = Path(folder)
    merged = (path / "config.json").is_file() and not (path / "adapter_config.json").is_file()
    return Export("merged" if merged else "adapter", folder)


def _output_folder(output: Path | None, index: int, models: int) -> Path | None:
    return output / str(index + 1) if output is not None and models > 1 else output


def _show(result: Evaluation, preset: Preset, folder: str | None, console: Console) -> None:
    console.print(folder or f"base model {preset.model.path}", style="bold", highlight=False, soft_wrap=True)
    console.print(_table(result, preset.evaluation.pass_at))
    for task, note in result.notes.items():
        console.print(f"* {task}: {note}", markup=False, highlight=False, soft_wrap=True)


def _table(result: Evaluation, pass_at: Sequence[int]) -> Table:
    table = Table()
    table.add_column("task")
    names = ("questions", "accuracy (%)", "standard error", "no answer found (%)", *(f"pass@{k} (%)" for k in pass_at))
    for heading in names:
        table.add_column(heading, justify="right")
    for task, score in result.scores.items():
        passed = [f"{100 * result.pass_at(task, k):.1f} ±{100 * result.standard_error(task, k):.1f}" for k in pass_at]
        marked = f"{task} *" if task in result.notes else task
        numbers = (score, result.standard_error(task), result.unanswered(task))
        table.add_row(marked, str(result.questions(task)), *(f"{100 * number:.1f}" for number in numbers), *passed)
    table.add_section()
    table.add_row("average", "", f"{100 * result.average:.1f}", f"{100 * result.average_error:.1f}")
    return table


class _RunWriter:
    """Writes every model's scores and predictions to MLflow and, if the user names one, to a folder."""

    def __init__(self, suite: str, preset: Preset, uri: str | None, about: Mapping[str, Any]) -> None:
        from beamplatform.tracking import Tracker, environment, environment_tags, ui_command

        self._tracker = Tracker(uri, suite)
        self._tracker.prepare()
        self._tags = environment_tags(environment())
        self._preset = preset
        self._settings = {**preset.evaluation.model_dump(mode="json"), **about}
        self.ui = ui_command(self._tracker.uri)

    def keep(self, result: Evaluation, model: str | None, output: Path | None) -> None:
        pass_at, tracker = self._preset.evaluation.pass_at, self._tracker
        base = self._preset.model.path
        settings = {f"evaluation.{key}": value for key, value in self._settings.items()}
        run = tracker.start_evaluation(
            f"evaluate {Path(model).resolve().name if model else base}",
            {"model.path": base, "export": model, **settings},
            {**self._tags, **{NOTE + task: note for task, note in result.notes.items()}},
        )
        tracker.log_metrics(run, [(0, result.metrics(pass_at))])
        with tempfile.TemporaryDirectory() as name:
            self._write(result, Path(name), model)
            tracker.log_folder(run, Path(name) / "predictions", "predictions")
            if output is not None:
                shutil.rmtree(output / "predictions", ignore_errors=True)  # may hold tasks that were not scored now
                shutil.copytree(name, output, dirs_exist_ok=True)
        for task, predictions in result.predictions.items():
            tracker.log_table(run, rows(predictions), f"predictions/{task}.json")
        tracker.finish(run, "FINISHED")

    def _write(self, result: Evaluation, folder: Path, model: str | None) -> None:
        pass_at = self._preset.evaluation.pass_at
        (folder / "predictions").mkdir()
        tasks = {
            task: {
                "accuracy": score,
                "standard_error": result.standard_error(task),
                "questions": result.questions(task),
                "no_answer": result.unanswered(task),
                **{f"pass_at_{k}": result.pass_at(task, k) for k in pass_at},
                **{f"pass_at_{k}_standard_error": result.standard_error(task, k) for k in pass_at},
                "note": result.notes.get(task, ""),
            }
            for task, score in result.scores.items()
        }
        scores = {
            "model": model,
            "base_model": self._preset.model.path,
            "settings": self._settings,
            "tasks": tasks,
            "average": result.average,
            "average_standard_error": result.average_error,
        }
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        for task, predictions in result.predictions.items():
            write_predictions(predictions, folder / "predictions" / f"{task}.parquet")
