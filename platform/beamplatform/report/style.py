"""Gives all pictures one style, readable in print, in grey and for the colour-blind, and saves them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), ordered so that neighbours differ in lightness as well.
# Yellow is left out because it vanishes on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK = "#222222"


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of this size in inches. It is made without pyplot, so it needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as ``<path>.png`` (200 dots per inch) and ``<path>.svg``; return both paths.

    Neither file contains a date, so that equal numbers give equal files.
    """
    import matplotlib

    # On its first use on a machine, matplotlib scans the fonts and logs a warning about it.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.svg")]
    with matplotlib.rc_context({"svg.hashsalt": "beamlora", "svg.fonttype": "path"}):
        figure.savefig(files[0], dpi=200, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    return files


def look(index: int) -> dict[str, Any]:
    """Return matplotlib's colour and marker arguments for the method at this index of the comparison.

    Markers are filled until every colour was used once, and hollow after that.
    """
    color = PALETTE[index % len(PALETTE)]
    hollow = index >= len(PALETTE)
    return {
        "color": color,
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "white" if hollow else color,
        "markeredgecolor": color if hollow else "white",
        "markeredgewidth": 1.3 if hollow else 0.6,
    }


def frame(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
