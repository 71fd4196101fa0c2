"""A comparison as tables: for a terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from beamplatform.report.comparison import AVERAGE, Cell, Comparison, Row
from beamplatform.report.labels import method_label, task_label

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MISSING = "-"


def scores_table(comparison: Comparison, *, upright: bool = False) -> Table:
    """The table method x task for a terminal, accuracies in percent.

    Args:
        upright: tasks as rows and methods as columns, which eight tasks need on 80 columns.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=_title(comparison),
        caption=_legend(comparison),
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        caption_style="dim",
        caption_justify="left",
    )
    columns = [*comparison.tasks, AVERAGE]
    if upright:
        table.add_column("task", no_wrap=True)
        for row in comparison.rows:
            table.add_column(method_label(row.method), justify="right", no_wrap=True)
        for task in columns:
            if task == AVERAGE:
                table.add_section()
            table.add_row(heading(comparison, task), *(_rich(_cell_of(row, task)) for row in comparison.rows))
        table.add_row("seeds", *(str(len(row.seeds)) for row in comparison.rows))
        return table
    table.add_column("method", no_wrap=True)
    for task in columns:
        table.add_column(heading(comparison, task), justify="right", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(method_label(row.method), *(_rich(_cell_of(row, task)) for task in columns), str(len(row.seeds)))
    return table


def chosen_table(comparison: Comparison) -> Table:
    """Which configuration stands for each method, and how it was chosen."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Chosen configurations",
        caption="lowest mean validation loss over the seeds; test scores take no part",
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        caption_style="dim",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("validation loss", justify="right")
    table.add_column("chosen from", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("settings")
    for row in comparison.rows:
        table.add_row(method_label(row.method), _loss(row), _origin(row), _parameters(row), _settings(row))
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Both tables on a console, the first one upright where the terminal is too narrow for it."""
    from rich.console import Console
    from rich.measure import Measurement

    roomy = console.options.update(width=10_000)
    needed = Measurement.get(console, roomy, scores_table(comparison)).maximum
    if not console.is_terminal and needed > console.width:  # a file or a pipe has no width to keep to
        console = Console(file=console.file, width=needed)
    if comparison.tasks:
        console.print(scores_table(comparison, upright=needed > console.width))
    console.print(chosen_table(comparison))
    for task, note in comparison.notes.items():
        console.print(f"{heading(comparison, task)}: {note}", style="yellow", markup=False, highlight=False)
    for sentence in comparison.uneven:
        console.print(f"uneven: {sentence}", style="yellow", markup=False, highlight=False)
    if comparison.left_out:
        console.print(f"left out: {', '.join(comparison.left_out)}", style="dim", markup=False, highlight=False)


def to_markdown(comparison: Comparison) -> str:
    """Both tables as GitHub's Markdown; the best of each column is bold."""
    columns = [*comparison.tasks, AVERAGE]
    lines = [f"### {_title(comparison)}", ""]
    lines += _grid(
        ["method", *(heading(comparison, task) for task in columns), "seeds"],
        "l" + "r" * (len(columns) + 1),
        [
            [
                method_label(row.method),
                *(_markdown(_cell_of(row, task)) for task in columns),
                str(len(row.seeds)),
            ]
            for row in comparison.rows
        ],
    )
    lines += ["", _legend(comparison).replace("* best", "**bold**: best"), ""]
    lines += ["Chosen by the lowest mean validation loss over the seeds; test scores take no part.", ""]
    lines += _grid(
        ["method", "validation loss", "chosen from", "trained parameters", "settings"],
        "lrrrl",
        [
            [method_label(row.method), _loss(row), _origin(row), _parameters(row), _escape(_settings(row))]
            for row in comparison.rows
        ],
    )
    if comparison.notes:
        lines += ["", *(f"- {heading(comparison, task)}: {_escape(note)}" for task, note in comparison.notes.items())]
    if comparison.uneven:
        lines += ["", "Uneven:", "", *(f"- {_escape(sentence)}" for sentence in comparison.uneven)]
    if comparison.left_out:
        lines += ["", f"Left out: {_escape(', '.join(comparison.left_out))}"]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per method and task, accuracies in 0..1 with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "suite",
            "sweep",
            "preset",
            "method",
            "configuration",
            "task",
            "accuracy",
            "standard_error",
            "seeds",
            "best",
            "trained_parameters",
        ]
    )
    for row in comparison.rows:
        for task in (*comparison.tasks, AVERAGE):
            cell = _cell_of(row, task)
            numbers = ["", ""] if cell is None else [repr(cell.mean), _repr(cell.standard_error)]
            best = cell is not None and cell.best
            writer.writerow(
                [
                    comparison.suite,
                    comparison.sweep,
                    comparison.preset,
                    row.method,
                    row.configuration,
                    task,
                    *numbers,
                    len(row.seeds),
                    str(best).lower(),
                    "" if row.parameters is None else row.parameters,
                ]
            )
    return text.getvalue()


def heading(comparison: Comparison, task: str) -> str:
    """The task's label, with a mark where there is a note on it."""
    return task_label(task) + (" †" if task in comparison.notes else "")


def _cell_of(row: Row, task: str) -> Cell | None:
    return row.average if task == AVERAGE else row.cells[task]


def _repr(value: float | None) -> str:
    return "" if value is None else repr(value)


def _title(comparison: Comparison) -> str:
    names = [comparison.suite, f"preset {comparison.preset}" if comparison.preset else "", comparison.sweep]
    return f"Accuracy (%): {', '.join(name for name in names if name)}"


def _legend(comparison: Comparison) -> str:
    parts = ["* best"]
    cells = [_cell_of(row, task) for row in comparison.rows for task in (*comparison.tasks, AVERAGE)]
    if any(cell is not None and cell.standard_error is not None for cell in cells):
        parts.insert(0, "mean ± standard error over the seeds")
    if not any(cell is not None and cell.best for cell in cells):
        parts.remove("* best")
    if any(cell is not None and cell.close for cell in cells):
        parts.append("~ within one standard error of the best")
    return "; ".join(parts)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return _MISSING
    error = "" if cell.standard_error is None else f" ±{100 * cell.standard_error:.1f}"
    return f"{100 * cell.mean:.1f}{error}"


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return " "
    return "*" if cell.best else "~" if cell.close else " "


def _rich(cell: Cell | None) -> str:
    """Marked by sign and by style: colours are lost in files and on some terminals."""
    text = _text(cell) + _mark(cell)
    return f"[bold green]{text}[/]" if cell is not None and cell.best else text


def _markdown(cell: Cell | None) -> str:
    text = _text(cell)
    if cell is None:
        return text
    return f"**{text}**" if cell.best else f"{text} ~" if cell.close else text


def _loss(row: Row) -> str:
    return _MISSING if row.validation_loss is None else f"{row.validation_loss:.4f}"


def _origin(row: Row) -> str:
    if row.choice == "only one":
        return "1"
    return (
        str(row.candidates)
        if row.choice == "lowest validation loss"
        else f"{row.candidates}, first by name: no finite loss"
    )


def _parameters(row: Row) -> str:
    """The most that were trained at a time, and where the number changed, that of the end."""
    if row.parameters is None:
        return _MISSING
    end = f" -> {row.kept:,}" if row.kept is not None and row.kept != row.parameters else ""
    return f"{row.parameters:,}{end}"


def _settings(row: Row) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.settings.items()) or _MISSING


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _grid(header: list[str], alignment: str, rows: list[list[str]]) -> list[str]:
    rules = ["---:" if side == "r" else "---" for side in alignment]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rules, *rows)]
