"""Loss over training, by method."""

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
"""(step, value) of one run."""


def draw_curves(comparison: Comparison, histories: Mapping[str, Sequence[History]]) -> Figure | None:
    """The mean training loss over the seeds against the step; between its lowest and highest seed a band.

    Args:
        histories: method -> the loss of each seed's run. None is drawn where no method has any.
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
        how = look(index)
        means = [statistics.fmean(by_step[step]) for step in steps]
        every = max(1, len(steps) // 8)
        axes.plot(steps, means, linewidth=1.5, markersize=5, markevery=(index % every, every), **how,
                  label=method_label(row.method))  # fmt: skip
        low, high = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
        axes.fill_between(steps, low, high, color=how["color"], alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("training loss", color=INK)
    axes.set_title("training loss: mean over the seeds, band: all seeds", loc="left", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    frame(axes)
    return figure
