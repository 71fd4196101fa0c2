"""What `pipelines/evaluate.py` does once its input is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
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
    from beamplatform.tasks.evaluate import Evaluation


def score_export(preset: Preset, adapter: str | None, output: Path | None) -> int:
    """Score the adapter or merged model in folder `adapter` (None: the base model) and print a table.

    Raises:
        UserError: no tasks, no data, or an adapter that does not belong to the base model; before anything is loaded.
    """
    tasks = preset.evaluation.tasks
    if not tasks:
        raise UserError("this preset names no tasks; give --tasks A,B")
    export, rank = None, 1
    if adapter is not None:
        merged = (Path(adapter) / "config.json").is_file() and not (Path(adapter) / "adapter_config.json").is_file()
        export = Export("merged" if merged else "adapter", adapter)
        check_export(resolve_path(preset.model.path), export)
        rank = 1 if merged else int(read_adapter_config(Path(adapter))["r"])
    records = test_records(preset.data, tasks, preset.evaluation.max_records)
    total = sum(len(rows) for rows in records.values())
    console = Console()
    evaluator = Evaluator(preset.model, preset.evaluation, records, adapters=1, largest_rank=rank)
    evaluator.check()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("questions", total=total)
        answered: dict[str, int] = {}

        def advance(task: str, done: int, _: int) -> None:
            answered[task] = done
            progress.update(bar, completed=sum(answered.values()))

        result = evaluator.evaluate(export, advance)
    console.print(_table(result, adapter or f"base model {preset.model.path}"))
    if output is not None:
        _write(result, output)
        console.print(f"Scores and predictions: {output}", highlight=False)
    return 0


def _table(result: Evaluation, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for heading in ("questions", "accuracy (%)", "standard error"):
        table.add_column(heading, justify="right")
    for task, score in result.scores.items():
        count = len(result.predictions[task])
        table.add_row(task, str(count), f"{100 * score:.1f}", f"{100 * result.standard_error(task):.1f}")
    table.add_section()
    table.add_row("average", "", f"{100 * result.average:.1f}", "")
    return table


def _write(result: Evaluation, folder: Path) -> None:
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    tasks = {
        task: {
            "accuracy": score,
            "standard_error": result.standard_error(task),
            "questions": len(result.predictions[task]),
        }
        for task, score in result.scores.items()
    }
    scores = {"tasks": tasks, "average": result.average}
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    for task, predictions in result.predictions.items():
        write_predictions(predictions, folder / "predictions" / f"{task}.parquet")
