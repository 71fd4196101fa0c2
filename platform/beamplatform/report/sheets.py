"""What a comparison says, as tables of texts that every format writes in its own way."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

from beamplatform.report.cells import Cell
from beamplatform.report.comparison import AVERAGE, Comparison, Row
from beamplatform.report.labels import method_label, task_label
from beamplatform.report.statistics import RESAMPLES

MISSING = "-"

Emphasis = Literal["", "best", "second"]


@dataclass(frozen=True)
class SheetRow:
    """One field of a table.

    Attributes:
        emphasis: how it stands in its column.
        mark: the same as a sign, for formats and terminals without type faces; "~": close to the best.
    """

    text: str
    emphasis: Emphasis = ""
    mark: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table; the first column and the last of `left` columns are read from the left, numbers from the right."""

    title: str
    columns: list[str]
    rows: list[list[SheetRow]]
    legend: str = ""
    left: tuple[int, ...] = (0,)


def sheets(comparison: Comparison) -> list[Sheet]:
    """All tables there is something to say in: scores, costs and choices, differences."""
    found = [scores_sheet(comparison)] if comparison.tasks else []
    found.append(chosen_sheet(comparison))
    if any(row.searched is not None for row in comparison.rows):
        found.append(search_sheet(comparison))
    if comparison.differences:
        found.append(differences_sheet(comparison))
    return found


def remarks(comparison: Comparison) -> list[str]:
    """What stands below the tables, a sentence each."""
    found = [f"{heading(comparison, task)}: {note}" for task, note in comparison.notes.items()]
    if comparison.alone:
        found.append(f"only {method_label(comparison.rows[0].method)} has finished trials: nothing to compare it with")
    found += [f"uneven: {sentence}" for sentence in comparison.uneven]
    if comparison.left_out:
        found.append(f"left out: {', '.join(comparison.left_out)}")
    return found


def scores_sheet(comparison: Comparison) -> Sheet:
    """Method x task, accuracies in percent, the paper's own in brackets."""
    columns = [*comparison.tasks, AVERAGE]
    return Sheet(
        title=title(comparison),
        columns=["method", *(heading(comparison, task) for task in columns), "seeds"],
        rows=[
            [
                SheetRow(method_label(row.method)),
                *(_score(row, task) for task in columns),
                SheetRow(str(len(row.seeds))),
            ]
            for row in comparison.rows
        ],
        legend=_legend(comparison),
    )


def chosen_sheet(comparison: Comparison) -> Sheet:
    """Which configuration stands for each method, how it was chosen and what it cost."""
    yardstick = comparison.yardstick
    name = method_label(yardstick.method)
    return Sheet(
        title="Chosen configurations",
        columns=["method", "validation loss", "chosen from", "parameters", "time", "memory", "settings"],
        rows=[
            [
                SheetRow(method_label(row.method)),
                SheetRow(MISSING if row.validation_loss is None else f"{row.validation_loss:.4f}"),
                SheetRow(_origin(row)),
                SheetRow(_parameters(row)),
                SheetRow(_relative(row.seconds, yardstick.seconds)),
                SheetRow(_relative(row.memory, yardstick.memory)),
                SheetRow(", ".join(f"{key}={value}" for key, value in row.settings.items()) or MISSING),
            ]
            for row in comparison.rows
        ],
        legend="Chosen by the lowest validation loss"
        + ("" if any(row.searched for row in comparison.rows) else ", the mean over the seeds")
        + "; test scores take no part. Parameters: the "
        f"most trained at a time. Training time and peak memory of a worker: relative to {name}.",
        left=(0, 6),
    )


def search_sheet(comparison: Comparison) -> Sheet:
    """The first stage: what was tried for each method, and what it came to."""
    rows = []
    for row in comparison.rows:
        found = row.searched
        losses = found.losses if found is not None else ()
        texts = [MISSING] * 6
        if found is not None:
            best = MISSING if found.best is None else f"{found.best:.4f}"
            middle = f"{statistics.median(losses):.4f}" if losses else MISSING
            texts = [*map(str, (found.trained, found.stopped, found.failed)), best, middle, f"{found.hours:.3g}"]
        rows.append([SheetRow(method_label(row.method)), *map(SheetRow, texts)])
    return Sheet(
        title="Search: stage one, by validation loss",
        columns=["method", "trained", "stopped", "failed", "best loss", "median loss", "worker-hours"],
        rows=rows,
        legend="The configuration with the best loss was then trained with fresh seeds, which the other tables are of.",
    )


def differences_sheet(comparison: Comparison) -> Sheet:
    """One method against each other: how large the difference is, and whether it is more than noise."""
    first = comparison.differences[0]
    return Sheet(
        title=f"{method_label(first.method)} against each, in points of average accuracy",
        columns=["against", "difference", "95 % interval", "p", "p (Holm)", "verdict"],
        rows=[
            [
                SheetRow(method_label(found.baseline)),
                SheetRow(f"{100 * found.difference:+.1f}"),
                SheetRow(f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"),
                SheetRow(_p(found.p)),
                SheetRow(_p(found.corrected)),
                SheetRow("noise" if found.is_noise else "better" if found.difference > 0 else "worse"),
            ]
            for found in comparison.differences
        ],
        legend=f"Paired bootstrap over {first.questions} questions, {RESAMPLES} resamples, seeds pooled; p-values "
        "corrected by Holm; noise: corrected p of 0.05 or more.",
        left=(0, 5),
    )


def heading(comparison: Comparison, task: str) -> str:
    """The task's label, with a mark where there is a note on it."""
    return task_label(task) + (" †" if task in comparison.notes else "")


def title(comparison: Comparison) -> str:
    names = [comparison.suite, f"preset {comparison.preset}" if comparison.preset else "", comparison.sweep]
    return f"Accuracy (%): {', '.join(name for name in names if name)}"


def cell_of(row: Row, task: str) -> Cell | None:
    return row.average if task == AVERAGE else row.cells[task]


def _score(row: Row, task: str) -> SheetRow:
    cell = cell_of(row, task)
    if cell is None:
        return SheetRow(MISSING)
    error = "" if cell.standard_error is None else f" ±{100 * cell.standard_error:.1f}"
    paper = f" [{100 * row.published[task]:.1f}]" if task in row.published else ""
    emphasis: Emphasis = "best" if cell.best else "second" if cell.second else ""
    mark = "*" if cell.best else "°" if cell.second else ""
    return SheetRow(f"{100 * cell.mean:.1f}{error}{paper}", emphasis, mark + ("~" if cell.close else ""))


def _legend(comparison: Comparison) -> str:
    rows = comparison.rows
    cells = [cell for row in rows for task in (*comparison.tasks, AVERAGE) if (cell := cell_of(row, task)) is not None]
    parts = [
        "mean ± standard error over the seeds" if any(cell.standard_error is not None for cell in cells) else "",
        "* best" if any(cell.best for cell in cells) else "",
        "° second" if any(cell.second for cell in cells) else "",
        "~ within one standard error of the best" if any(cell.close for cell in cells) else "",
        "[published]: BeamLoRA paper, same model and rank" if any(row.published for row in rows) else "",
    ]
    return "; ".join(filter(None, parts))


def _origin(row: Row) -> str:
    if row.choice == "only one":
        return "1"
    return f"{row.candidates}" if row.choice != "first by name" else f"{row.candidates}, first by name: no finite loss"


def _parameters(row: Row) -> str:
    """The most that were trained at a time, and where the number changed, that of the end."""
    if row.parameters is None:
        return MISSING
    end = f" -> {row.kept:,}" if row.kept is not None and row.kept != row.parameters else ""
    return f"{row.parameters:,}{end}"


def _relative(value: float | None, to: float | None) -> str:
    return MISSING if not value or not to else f"{value / to:.2f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
