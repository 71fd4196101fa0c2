"""Draws the training loss of every method over the optimizer steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from beamplatform.report.comparison import Comparison
from beamplatform.report.labels import method_label
from beamplatform.report.style import INK, frame, look, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[tuple[int, float]]
"""(optimizer step, value) pairs of one run."""


def draw_curves(comparison: Comparison, histories: Mapping[str, Sequence[History]]) -> Figure | None:
    """Draw the mean training loss over the seeds, with a band from the lowest to the highest seed.

    Args:
        histories: method -> loss history of each seed's run.

    Returns:
        The figure; None if no method has a loss history.
    """
    if not any(any(history for history in runs) for runs in histories.values()):
        return None
    figure = new_figure(7.5, 4.0)
    axes = figure.subplots()
    for index, row in enumerate(comparison.rows):
        by_step: dict[int, list[float]] = {}
        for history in histories.get(row.method, ()):
            for step, value in history:
                by_step.setdefault(step, []).append(value)
        steps = sorted(by_step)
        if not steps:
            continue
        style = look(index)
        means = [statistics.fmean(by_step[step]) for step in steps]
        every = max(1, len(steps) // 8)
        axes.plot(steps, means, linewidth=1.5, markersize=5, markevery=(index % every, every), **style,
                  label=method_label(row.method))  # fmt: skip
        low, high = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("training loss", color=INK)
    axes.set_title("training loss: mean over the seeds, band: all seeds", loc="left", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    frame(axes)
    return figure
