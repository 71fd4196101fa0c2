"""What `pipelines/evaluate.py` does once its input is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from beamplatform.data.splits import test_records
from beamplatform.errors import UserError
from beamplatform.inference import Export, check_export
from beamplatform.inference.check import read_adapter_config
from beamplatform.models import resolve_path
from beamplatform.sweep.evaluator import Evaluator
from beamplatform.tasks.predictions import write_predictions

if TYPE_CHECKING:
    from beamplatform.suite import Preset
    from beamplatform.tasks import Evaluation


def score_exports(
    preset: Preset,
    folders: Sequence[str],
    *,
    output: Path | None,
    store: str | None,
    options: Collection[str] = (),
) -> int:
    """Score adapters and merged models (or, where none is named, the base model) and print a table for each.

    Args:
        folders: each with an adapter or a merged model.
        output: scores.json and predictions go here; with several models to a folder for each, numbered as given.
        store: where answers are kept and looked up; None = nowhere.
        options: of the tasks, beside the suite's own.

    Returns:
        The exit code: 1 when a model could not be asked.

    Raises:
        UserError: no tasks, no data, or an adapter that does not belong to the base model; before anything is loaded.
    """
    tasks = preset.evaluation.tasks
    if not tasks:
        raise UserError("this preset names no tasks; give --tasks A,B")
    base = resolve_path(preset.model.path)
    exports = [read_export(folder) for folder in folders]
    for export in exports:
        check_export(base, export)
    if len(set(exports)) < len(exports):
        raise UserError("--adapter: the same folder is named twice")
    ranks = [int(read_adapter_config(Path(export.path))["r"]) for export in exports if export.kind == "adapter"]
    records = test_records(preset.data, tasks, preset.evaluation.max_records)
    total = sum(len(rows) for rows in records.values())
    console = Console()
    evaluator = Evaluator(
        preset.model,
        preset.evaluation,
        records,
        adapters=max(len(ranks), 1),
        largest_rank=max(ranks, default=1),
        store=store,
        options=options,
    )
    evaluator.check()
    models: list[Export | None] = [*exports] or [None]
    adapters = [index for index, export in enumerate(models) if export is None or export.kind == "adapter"]
    merged = [[index] for index in range(len(models)) if index not in adapters]
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("questions", total=total * len(models))
            answered = [0] * len(models)
            for together in [adapters, *merged] if adapters else merged:
                for event in evaluator.stream([models[index] for index in together]):
                    index = together[event.index]
                    answered[index] = event.answered
                    progress.update(bar, completed=sum(answered))
                    if isinstance(event.outcome, UserError):
                        failed += 1
                        console.print(str(event.outcome), style="red", markup=False, soft_wrap=True)
                    elif event.outcome is not None:
                        folder = folders[index] if folders else None
                        _show(event.outcome, preset, folder, _place(output, index, len(models)), console)
    except KeyboardInterrupt:
        if store is not None:
            print(
                f"stopped; the answers so far are kept in {store}: the same command goes on from there", file=sys.stderr
            )
        raise
    return 1 if failed else 0


def read_export(folder: str) -> Export:
    """What lies in a folder: a merged model where it has a model's configuration and no adapter's."""
    path = Path(folder)
    merged = (path / "config.json").is_file() and not (path / "adapter_config.json").is_file()
    return Export("merged" if merged else "adapter", folder)


def _place(output: Path | None, index: int, models: int) -> Path | None:
    return output / str(index + 1) if output is not None and models > 1 else output


def _show(result: Evaluation, preset: Preset, folder: str | None, output: Path | None, console: Console) -> None:
    pass_at = preset.evaluation.pass_at
    console.print(_table(result, folder or f"base model {preset.model.path}", pass_at))
    for task, note in result.notes.items():
        console.print(f"{task}: {note}", markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        _write(result, output, folder, pass_at)
        console.print(f"Scores and predictions: {output}", highlight=False)


def _table(result: Evaluation, title: str, pass_at: Sequence[int]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for heading in ("questions", "accuracy (%)", "standard error", *(f"pass@{k} (%)" for k in pass_at)):
        table.add_column(heading, justify="right")
    for task, score in result.scores.items():
        passed = [f"{100 * result.pass_at(task, k):.1f} ±{100 * result.standard_error(task, k):.1f}" for k in pass_at]
        marked = f"{task} *" if task in result.notes else task
        error = f"{100 * result.standard_error(task):.1f}"
        table.add_row(marked, str(result.questions(task)), f"{100 * score:.1f}", error, *passed)
    table.add_section()
    table.add_row("average", "", f"{100 * result.average:.1f}", f"{100 * result.average_error:.1f}")
    return table


def _write(result: Evaluation, folder: Path, model: str | None, pass_at: Sequence[int]) -> None:
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    tasks = {
        task: {
            "accuracy": score,
            "standard_error": result.standard_error(task),
            "questions": result.questions(task),
            **{f"pass_at_{k}": result.pass_at(task, k) for k in pass_at},
            **{f"pass_at_{k}_standard_error": result.standard_error(task, k) for k in pass_at},
            "note": result.notes.get(task, ""),
        }
        for task, score in result.scores.items()
    }
    average = {"average": result.average, "average_standard_error": result.average_error}
    scores = {"model": model, "tasks": tasks, **average}
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    for task, predictions in result.predictions.items():
        write_predictions(predictions, folder / "predictions" / f"{task}.parquet")
