"""A comparison as tables of texts, which every output format renders in its own way."""

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
class SheetField:
    """One field of a table.

    Attributes:
        emphasis: its rank in the column, if it is the best or second.
        mark: a sign for formats without bold and italics: "*" best, "°" second; "~" is added if close to the best.
    """

    text: str
    emphasis: Emphasis = ""
    mark: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        legend: explanation below the table.
        left: indices of the left-aligned columns, which hold words; all others are right-aligned.
    """

    title: str
    columns: list[str]
    rows: list[list[SheetField]]
    legend: str = ""
    left: tuple[int, ...] = (0,)


def sheets(comparison: Comparison) -> list[Sheet]:
    """Return those tables that have content: scores, chosen configurations, search, differences."""
    tables = [scores_sheet(comparison)] if comparison.tasks else []
    tables.append(chosen_sheet(comparison))
    if any(row.searched is not None for row in comparison.rows):
        tables.append(search_sheet(comparison))
    if comparison.differences:
        tables.append(differences_sheet(comparison))
    return tables


def remarks(comparison: Comparison) -> list[str]:
    """Return the sentences that stand below the tables."""
    lines = [f"{heading(comparison, task)}: {note}" for task, note in comparison.notes.items()]
    if comparison.alone:
        lines.append(f"only {method_label(comparison.rows[0].method)} has finished trials: nothing to compare it with")
    lines += [f"uneven: {sentence}" for sentence in comparison.uneven]
    if comparison.left_out:
        lines.append(f"left out: {', '.join(comparison.left_out)}")
    return lines


def scores_sheet(comparison: Comparison) -> Sheet:
    """Return the table of methods x tasks: accuracies in percent, with the paper's in brackets."""
    columns = [*comparison.tasks, AVERAGE]
    return Sheet(
        title=title(comparison),
        columns=["method", *(heading(comparison, task) for task in columns), "seeds"],
        rows=[
            [
                SheetField(method_label(row.method)),
                *(_score(row, task) for task in columns),
                SheetField(str(len(row.seeds))),
            ]
            for row in comparison.rows
        ],
        legend=_legend(comparison),
    )


def chosen_sheet(comparison: Comparison) -> Sheet:
    """Return the table of chosen configurations: how each was chosen, its cost and its settings."""
    yardstick = comparison.yardstick
    name = method_label(yardstick.method)
    return Sheet(
        title="Chosen configurations",
        columns=["method", "validation loss", "chosen from", "parameters", "time", "memory", "settings"],
        rows=[
            [
                SheetField(method_label(row.method)),
                SheetField(MISSING if row.validation_loss is None else f"{row.validation_loss:.4f}"),
                SheetField(_origin(row)),
                SheetField(_parameters(row)),
                SheetField(_relative(row.seconds, yardstick.seconds)),
                SheetField(_relative(row.memory, yardstick.memory)),
                SheetField(", ".join(f"{key}={value}" for key, value in row.settings.items()) or MISSING),
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
    """Return the table of the search: each method's number of trials, their losses and worker-hours."""
    rows = []
    for row in comparison.rows:
        search = row.searched
        losses = search.losses if search is not None else ()
        texts = [MISSING] * 6
        if search is not None:
            best = MISSING if search.best is None else f"{search.best:.4f}"
            middle = f"{statistics.median(losses):.4f}" if losses else MISSING
            texts = [*map(str, (search.trained, search.stopped, search.failed)), best, middle, f"{search.hours:.3g}"]
        rows.append([SheetField(method_label(row.method)), *map(SheetField, texts)])
    return Sheet(
        title="Search: stage one, by validation loss",
        columns=["method", "trained", "stopped", "failed", "best loss", "median loss", "worker-hours"],
        rows=rows,
        legend="The configuration with the best loss was then trained with fresh seeds, which the other tables are of.",
    )


def differences_sheet(comparison: Comparison) -> Sheet:
    """Return the table of one method against every other: the size of each difference, and whether it is noise."""
    first = comparison.differences[0]
    return Sheet(
        title=f"{method_label(first.method)} against each, in points of average accuracy",
        columns=["against", "difference", "95 % interval", "p", "p (Holm)", "verdict"],
        rows=[
            [
                SheetField(method_label(result.baseline)),
                SheetField(f"{100 * result.difference:+.1f}"),
                SheetField(f"{100 * result.low:+.1f} to {100 * result.high:+.1f}"),
                SheetField(_p(result.p)),
                SheetField(_p(result.corrected)),
                SheetField("noise" if result.is_noise else "better" if result.difference > 0 else "worse"),
            ]
            for result in comparison.differences
        ],
        legend=f"Paired bootstrap over {first.questions} questions, {RESAMPLES} resamples, seeds pooled; p-values "
        "corrected by Holm; noise: corrected p of 0.05 or more.",
        left=(0, 5),
    )


def heading(comparison: Comparison, task: str) -> str:
    """Return the task's label, with a dagger if there is a note on it."""
    return task_label(task) + (" †" if task in comparison.notes else "")


def title(comparison: Comparison) -> str:
    names = [comparison.suite, f"preset {comparison.preset}" if comparison.preset else "", comparison.sweep]
    return f"Accuracy (%): {', '.join(name for name in names if name)}"


def cell_of(row: Row, task: str) -> Cell | None:
    return row.average if task == AVERAGE else row.cells[task]


def _score(row: Row, task: str) -> SheetField:
    cell = cell_of(row, task)
    if cell is None:
        return SheetField(MISSING)
    error = "" if cell.standard_error is None else f" ±{100 * cell.standard_error:.1f}"
    paper = f" [{100 * row.published[task]:.1f}]" if task in row.published else ""
    emphasis: Emphasis = "best" if cell.best else "second" if cell.second else ""
    mark = "*" if cell.best else "°" if cell.second else ""
    return SheetField(f"{100 * cell.mean:.1f}{error}{paper}", emphasis, mark + ("~" if cell.close else ""))


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
    """Return the most parameters trained at a time, followed by the number at the end if it differs."""
    if row.parameters is None:
        return MISSING
    end = f" -> {row.kept:,}" if row.kept is not None and row.kept != row.parameters else ""
    return f"{row.parameters:,}{end}"


def _relative(value: float | None, to: float | None) -> str:
    return MISSING if not value or not to else f"{value / to:.2f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
