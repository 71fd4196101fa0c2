"""The comparison of methods: numbers, tables and pictures."""

from __future__ import annotations

from beamplatform.report.cells import Cell
from beamplatform.report.comparison import Comparison, Row, compare
from beamplatform.report.picture import draw
from beamplatform.report.render import print_comparison, to_csv, to_latex, to_markdown

__all__ = [
    "Cell",
    "Comparison",
    "Row",
    "compare",
    "draw",
    "print_comparison",
    "to_csv",
    "to_latex",
    "to_markdown",
]
