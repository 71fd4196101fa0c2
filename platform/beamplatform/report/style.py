"""How all pictures look, and how they are written: readable in print, in grey and for the colour-blind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), ordered so that neighbours differ in lightness as well;
# yellow is left out, it vanishes on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK = "#222222"


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, made without pyplot and so without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as ``<path>.png`` (200 dots per inch) and ``<path>.svg`` and return both paths.

    Neither file holds a date, so that equal numbers give equal files.
    """
    import matplotlib

    # The first use on a machine scans its fonts, and says so as a warning.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    files = [base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.svg")]
    with matplotlib.rc_context({"svg.hashsalt": "beamlora", "svg.fonttype": "path"}):
        figure.savefig(files[0], dpi=200, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    return files


def look(index: int) -> dict[str, Any]:
    """Markers are filled until the colours are used up, and hollow from there on."""
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
