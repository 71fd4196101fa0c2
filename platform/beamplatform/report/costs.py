"""Draws what accuracy costs: time and memory by method (the paper's Figures 8 and 9), and accuracy against time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beamplatform.report.comparison import Comparison, Row
from beamplatform.report.labels import method_label
from beamplatform.report.style import INK, frame, look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_costs(comparison: Comparison) -> Figure | None:
    """Draw training time and peak memory relative to the yardstick (LoRA), and accuracy against time.

    Returns None if the yardstick's runs recorded no time or no memory.
    """
    yardstick = comparison.yardstick
    if not yardstick.seconds or not yardstick.memory:
        return None
    rows = [row for row in comparison.rows if row.seconds and row.memory]
    figure = new_figure(10.5, 1.6 + 0.32 * max(len(rows), 4))
    time, memory, pareto = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    _bars(time, comparison, rows, [(row.seconds or 0) / yardstick.seconds for row in rows], "training time")
    _bars(memory, comparison, rows, [(row.memory or 0) / yardstick.memory for row in rows], "peak memory")
    memory.set_yticklabels([])
    _pareto(pareto, comparison, rows, yardstick)
    return figure


def _bars(axes: Axes, comparison: Comparison, rows: list[Row], values: list[float], title: str) -> None:
    colors = [look(comparison.rows.index(row))["color"] for row in rows]
    axes.barh(range(len(rows)), values, color=colors, height=0.62)
    for position, value in enumerate(values):
        axes.annotate(
            f"{value:.2f}", (value, position), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axvline(1.0, color="#8A8A8A", linewidth=1.0, linestyle=(0, (3, 2)), zorder=0)
    axes.set_yticks(range(len(rows)), [method_label(row.method) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.18 * max(values))
    axes.set_title(f"{title}, {method_label(comparison.yardstick.method)} = 1", loc="left", fontsize=10, color=INK)
    axes.tick_params(axis="y", length=0)
    frame(axes)


def front(points: list[tuple[float, float]]) -> list[int]:
    """Return the indices of those points (cost, quality) that form the Pareto front, by ascending cost."""
    indices: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not indices or points[index][1] > points[indices[-1]][1]:
            indices.append(index)
    return indices


def _pareto(axes: Axes, comparison: Comparison, rows: list[Row], yardstick: Row) -> None:
    assert yardstick.seconds
    scored = [row for row in rows if row.average is not None]
    points = [((row.seconds or 0) / yardstick.seconds, 100 * row.average.mean) for row in scored if row.average]
    best = front(points)
    axes.plot([points[i][0] for i in best], [points[i][1] for i in best], color="#8A8A8A", linewidth=1.2, zorder=1)
    for row, (cost, quality) in zip(scored, points, strict=True):
        index = comparison.rows.index(row)
        error = 100 * ((row.average.standard_error or 0.0) if row.average else 0.0)
        axes.errorbar([cost], [quality], yerr=[error], linestyle="none", markersize=7, zorder=3, **look(index),
                      label=method_label(row.method))  # fmt: skip
    axes.set_xlabel(f"training time, {method_label(yardstick.method)} = 1", fontsize=9, color=INK)
    axes.set_ylabel("average accuracy (%)", fontsize=9, color=INK)
    axes.set_title("quality against cost; line: Pareto front", loc="left", fontsize=10, color=INK)
    if scored:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(color="#DDDDDD", linewidth=0.7)
    frame(axes)
