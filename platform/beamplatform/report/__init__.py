"""The comparison of methods: numbers, tables and a picture."""

from __future__ import annotations

from beamplatform.report.comparison import Cell, Comparison, Row, compare
from beamplatform.report.picture import draw, save_picture
from beamplatform.report.render import chosen_table, print_comparison, scores_table, to_csv, to_markdown

__all__ = [
    "Cell",
    "Comparison",
    "Row",
    "chosen_table",
    "compare",
    "draw",
    "print_comparison",
    "save_picture",
    "scores_table",
    "to_csv",
    "to_markdown",
]
