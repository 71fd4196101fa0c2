"""Draws the beam of one BeamLoRA run: the ranks' scores, which rank replaced which, and how many were operated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from beamplatform.report.style import INK, frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[dict[str, Any]]
"""One entry per beam step, as in the file that `methods.beamlora.HISTORY` names."""

_MODULES = 8


def draw_beam(history: History) -> Figure | None:
    """Draw threshold and operated ranks over training, and the scores of the modules with the most replaced ranks.

    In the panel of a module, rows are ranks, columns are beam steps, and colours are scores relative to 1 / r. A cross
    marks a rank that was replaced. Returns None if there was no beam step.
    """
    if not history:
        return None
    replaced = {name: sum(len(step["operated"].get(name, ())) for step in history) for name in history[-1]["scores"]}
    modules = sorted(replaced, key=lambda name: (-replaced[name], name))[:_MODULES]
    columns = min(4, len(modules))
    lines = -(-len(modules) // columns)
    figure = new_figure(2.6 * columns + 1.2, 2.4 + 2.3 * lines)
    grid = figure.add_gridspec(1 + lines, columns)
    _course(figure.add_subplot(grid[0, :]), history)
    panels = [figure.add_subplot(grid[1 + index // columns, index % columns]) for index in range(len(modules))]
    images = [_module(axes, name, history) for axes, name in zip(panels, modules, strict=True)]
    bar = figure.colorbar(images[0], ax=panels, shrink=0.8)
    bar.set_label("score · r", fontsize=9, color=INK)
    return figure


def _course(axes: Axes, history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = [step["step"] for step in history]
    operated = [sum(len(pairs) for pairs in step["operated"].values()) for step in history]
    axes.bar(steps, operated, width=0.35 * _spacing(steps), color="#56B4E9")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_ylabel("operated ranks (bars)", fontsize=9, color=INK)
    right = axes.twinx()
    right.plot(steps, [step["threshold"] for step in history], color="#D55E00", marker="o", markersize=4, linewidth=1.3)
    right.set_ylabel("threshold p (line)", fontsize=9, color=INK)
    axes.set_xlabel("optimizer step", fontsize=9, color=INK)
    axes.set_title("beam steps", loc="left", fontsize=10, color=INK)
    frame(axes)
    frame(right)


def _spacing(steps: Sequence[int]) -> float:
    return (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 1.0


def _module(axes: Axes, name: str, history: History) -> Any:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    scores = np.array([step["scores"][name] for step in history]).T
    image = axes.imshow(
        scores * len(scores), aspect="auto", cmap="cividis", vmin=0.5, vmax=1.5, interpolation="nearest"
    )
    crosses = [(column, pruned) for column, step in enumerate(history) for pruned, _ in step["operated"].get(name, ())]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), linestyle="none", marker="x", color="white", markersize=4)
    axes.set_title(short(name), loc="left", fontsize=8, color=INK)
    every = max(1, len(history) // 4)
    axes.set_xticks(range(0, len(history), every), [str(step["step"]) for step in history[::every]], fontsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.tick_params(labelsize=7)
    return image


def short(module: str) -> str:
    """Return the number of a module's block and the layer's name: model.layers.3.self_attn.q_proj -> 3 q_proj."""
    parts = module.split(".")
    numbers = [part for part in parts if part.isdigit()]
    return " ".join([*numbers[-1:], parts[-1]])


def replacements(history: History) -> list[tuple[int, str, str]]:
    """Return (step, module, "pruned ← parent, ...") of every beam step and module in which ranks were replaced."""
    return [
        (step["step"], name, ", ".join(f"{pruned} ← {parent}" for pruned, parent in pairs))
        for step in history
        for name, pairs in sorted(step["operated"].items())
    ]
