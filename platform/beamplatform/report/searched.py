"""Draws the results of the search: quality against each hyperparameter (the paper's Figures 5 to 7) and all at once."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from beamplatform.metrics import VALIDATION_LOSS
from beamplatform.report.comparison import EVAL
from beamplatform.report.labels import method_label
from beamplatform.report.style import INK, frame, look, new_figure
from beamplatform.tracking.runs import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPERATED = "beam/operated_ranks"
AXES = {"r": "rank r", "interval": "interval Δt", "p_init": "p_init", "learning_rate": "learning rate"}


def searched(runs: Sequence[TrialRecord]) -> dict[str, dict[str, list[tuple[TrialRecord, float]]]]:
    """Return method -> hyperparameter -> (run, value) pairs, for numeric hyperparameters with at least two values."""
    by_method: dict[str, dict[str, list[tuple[TrialRecord, float]]]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        trained = [run for run in runs if run.method == method and VALIDATION_LOSS in run.metrics]
        for name in sorted({name for run in trained for name in run.params if "." not in name} - {"seed", "method"}):
            values = [(run, number) for run in trained if (number := _number(run.params.get(name))) is not None]
            if len({number for _, number in values}) > 1:
                by_method.setdefault(method, {})[name] = values
    return by_method


def draw_effects(runs: Sequence[TrialRecord], methods: Sequence[str]) -> Figure | None:
    """Draw quality against each searched hyperparameter, one panel per hyperparameter.

    Quality is the average accuracy if every run in the panel has one, else the validation loss. The panel of p_init has
    a second axis with the number of ranks operated in the last beam step. Returns None if no numeric hyperparameter was
    searched.
    """
    by_method = searched(runs)
    names = sorted({name for panels in by_method.values() for name in panels}, key=lambda n: (n not in AXES, n))
    if not names:
        return None
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(3.6 * columns + 0.6, 3.0 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        points = {m: by_method[m][name] for m in methods if name in by_method.get(m, {})}
        _effect(axes, name, points, methods)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def _effect(
    axes: Axes, name: str, points: Mapping[str, Sequence[tuple[TrialRecord, float]]], methods: Sequence[str]
) -> None:
    scored = all(EVAL + "average" in run.metrics for pairs in points.values() for run, _ in pairs)
    metric, factor = (EVAL + "average", 100.0) if scored else (VALIDATION_LOSS, 1.0)
    for method, pairs in points.items():
        style = look(list(methods).index(method))
        values = sorted({value for _, value in pairs})
        means = [factor * statistics.fmean(run.metrics[metric] for run, v in pairs if v == value) for value in values]
        axes.scatter([v for _, v in pairs], [factor * run.metrics[metric] for run, _ in pairs], s=9,
                     color=style["color"], alpha=0.45, linewidths=0)  # fmt: skip
        axes.plot(values, means, linewidth=1.2, markersize=5, **style, label=method_label(method))
        if name == "p_init" and any(OPERATED in run.metrics for run, _ in pairs):
            right = axes.twinx()
            operated = sorted((value, run.metrics[OPERATED]) for run, value in pairs if OPERATED in run.metrics)
            right.plot(*zip(*operated, strict=True), color="#8A8A8A", linestyle=(0, (3, 2)), linewidth=1.0)
            right.set_ylabel("operated ranks, last beam step (dashed)", fontsize=8, color=INK)
            frame(right)
    if name == "learning_rate":
        axes.set_xscale("log")
    axes.set_xlabel(AXES.get(name, name), fontsize=9, color=INK)
    axes.set_ylabel("average accuracy (%)" if scored else "validation loss", fontsize=9, color=INK)
    axes.legend(fontsize=7, frameon=False)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    frame(axes)


def draw_parallel(runs: Sequence[TrialRecord], method: str) -> Figure | None:
    """Draw every trial of a method as a line through its hyperparameter values to its validation loss.

    Darker lines have a lower loss. Returns None if fewer than two hyperparameters were searched, or fewer than two
    trials have a finite loss.
    """
    names = sorted(searched(runs).get(method, {}))
    ended = [run for run in runs if run.method == method and math.isfinite(run.metrics.get(VALIDATION_LOSS, math.nan))]
    if len(names) < 2 or len(ended) < 2:
        return None
    columns = [[_number(run.params.get(name)) for run in ended] for name in names]
    columns.append([run.metrics[VALIDATION_LOSS] for run in ended])
    figure = new_figure(1.6 * len(columns) + 1.5, 3.4)
    axes = figure.subplots()
    scaled = [_scaled(column) for column in columns]
    losses = scaled[-1]
    for index in sorted(range(len(ended)), key=lambda index: -losses[index]):
        shade = 0.15 + 0.65 * losses[index]
        axes.plot(range(len(columns)), [column[index] for column in scaled], color=str(shade), linewidth=1.4)
    for index, column in enumerate(columns):
        present = [value for value in column if value is not None]
        axes.axvline(index, color="#BBBBBB", linewidth=0.8, zorder=0)
        for height, value in ((1.03, max(present)), (-0.03, min(present))):
            side = "bottom" if height > 1 else "top"
            axes.text(index, height, f"{value:.4g}", ha="center", va=side, fontsize=8, color=INK)
    axes.set_xticks(range(len(columns)), [*(AXES.get(name, name) for name in names), "validation loss"], fontsize=9)
    axes.tick_params(axis="x", length=0, pad=14)
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    title = f"{method_label(method)}: all {len(ended)} trials; the darker, the lower the validation loss"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    frame(axes)
    return figure


def _scaled(column: Sequence[float | None]) -> list[float]:
    present = [value for value in column if value is not None]
    low, high = min(present), max(present)
    return [0.5 if value is None or high == low else (value - low) / (high - low) for value in column]


def _number(text: str | None) -> float | None:
    try:
        value = json.loads(text or "")
    except ValueError:
        return None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
