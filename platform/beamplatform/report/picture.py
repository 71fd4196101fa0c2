"""Draws the comparison: accuracies by task on the left, the average with its numbers on the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beamplatform.report.cells import Cell
from beamplatform.report.comparison import Comparison
from beamplatform.report.labels import method_label
from beamplatform.report.sheets import heading
from beamplatform.report.style import INK, frame, look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_CHANCE: dict[str, Any] = {"color": "#8A8A8A", "linewidth": 1.2, "linestyle": (0, (3, 2))}
_NARROWEST, _WIDEST = 7.5, 12.0  # inches; in a wider picture, letters are unreadable in a README's column
_GROUP = 0.74  # share of a task's width that its markers take


def draw(comparison: Comparison, *, chance: Mapping[str, float] | None = None) -> Figure:
    """Draw accuracies as a matplotlib figure, without pyplot, so that it needs no display and no global state.

    Each method has its own colour and marker, so that methods can be told apart in grey as well. A large marker is the
    mean over the seeds, a small one is a single seed, and a bar is the standard error.

    Args:
        chance: task -> accuracy (0..1) of guessing, drawn as a dashed line.
    """
    rows = comparison.rows
    preferred_width = 4.4 + len(comparison.tasks) * max(0.75, 0.16 * (len(rows) + 1))
    width = min(_WIDEST, max(_NARROWEST, preferred_width))
    figure = new_figure(width, 4.6)
    by_task, average = figure.subplots(1, 2, width_ratios=[width - 3.4, 2.4])
    _draw_tasks(by_task, comparison, chance or {})
    _draw_average(average, comparison)
    handles = _legend(comparison, with_chance=bool(set(chance or {}) & set(comparison.tasks)))
    lines = math.ceil(len(handles) / (width / 1.5))
    columns = math.ceil(len(handles) / lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    suite_and_preset = f"{comparison.suite}, preset {comparison.preset}" if comparison.preset else comparison.suite
    figure.suptitle(
        f"{suite_and_preset}: accuracy by fine-tuning method", x=0.01, ha="left", fontsize=12, weight="bold", color=INK
    )
    return figure


def _legend(comparison: Comparison, *, with_chance: bool) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", markersize=7, label=method_label(row.method), **look(index))
        for index, row in enumerate(comparison.rows)
    ]
    if with_chance:
        handles.append(Line2D([], [], label="chance", **_CHANCE))
    return handles


def _draw_tasks(axes: Axes, comparison: Comparison, chance: Mapping[str, float]) -> None:
    rows = comparison.rows
    slot = _GROUP / len(rows)
    for index, row in enumerate(rows):
        offset = (index - (len(rows) - 1) / 2) * slot
        cells = [
            (column, cell) for column, task in enumerate(comparison.tasks) if (cell := row.cells[task]) is not None
        ]
        positions = [column + offset for column, _ in cells]
        _points(axes, positions, [cell for _, cell in cells], index)
    for column, task in enumerate(comparison.tasks):
        if task in chance:
            axes.plot([column - 0.46, column + 0.46], [100 * chance[task]] * 2, **_CHANCE)
        if column % 2:
            axes.axvspan(column - 0.5, column + 0.5, color="#F3F4F6", linewidth=0, zorder=0)
    axes.set_xlim(-0.5, len(comparison.tasks) - 0.5)
    axes.set_xticks(range(len(comparison.tasks)), [heading(comparison, task) for task in comparison.tasks], fontsize=9)
    axes.set_ylabel("accuracy (%)", color=INK)
    axes.set_title(_reading(comparison), loc="left", fontsize=10, color=INK)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.tick_params(axis="x", length=0)
    frame(axes)


def _points(axes: Axes, positions: Sequence[float], cells: Sequence[Cell], index: int) -> None:
    style = look(index)
    for position, cell in zip(positions, cells, strict=True):
        if len(cell.values) > 1:
            values = [100 * value for value in cell.values]
            axes.scatter(
                [position] * len(values),
                values,
                s=9,
                color=style["color"],
                alpha=0.45,
                linewidths=0,
                zorder=2,
            )
    axes.errorbar(
        positions,
        [100 * cell.mean for cell in cells],
        yerr=[100 * (cell.standard_error or 0.0) for cell in cells],
        linestyle="none",
        markersize=6.5,
        elinewidth=1.4,
        zorder=3,
        **style,
    )


def _draw_average(axes: Axes, comparison: Comparison) -> None:
    """Draw one line per method with its average accuracy, which is the number that readers look for."""
    rows = comparison.rows
    averages = [(index, row.average) for index, row in enumerate(rows) if row.average is not None]
    for index, cell in averages:
        style = look(index)
        mean = 100 * cell.mean
        values = [100 * value for value in cell.values]
        if len(values) > 1:
            axes.scatter(values, [index] * len(values), s=9, color=style["color"], alpha=0.45, linewidths=0, zorder=2)
        axes.errorbar(
            [mean],
            [index],
            xerr=[100 * (cell.standard_error or 0.0)],
            linestyle="none",
            markersize=8,
            elinewidth=1.6,
            zorder=3,
            **style,
        )
        error = "" if cell.standard_error is None else f" ± {100 * cell.standard_error:.1f}"
        axes.annotate(
            f"{mean:.1f}{error}",
            (mean, index),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            weight="bold" if cell.best else "normal",
            color=INK,
        )
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.set_yticks(range(len(rows)), [method_label(row.method) for row in rows], fontsize=9)
    if averages:
        ends = [100 * value for _, cell in averages for value in (*cell.values, cell.mean)]
        margin = max(1.0, 0.35 * (max(ends) - min(ends)))
        axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("accuracy (%)", color=INK)
    axes.set_title(f"average of {len(comparison.tasks)}", loc="left", fontsize=10, color=INK)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    frame(axes)


def _reading(comparison: Comparison) -> str:
    """Return a title that explains the markers and bars, given the methods' numbers of seeds."""
    numbers = sorted({len(row.seeds) for row in comparison.rows})
    if numbers[-1] == 1:
        return "by task, one seed"
    seeds = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"by task: mean of {seeds} seeds, standard error (bar), each seed (dot)"
