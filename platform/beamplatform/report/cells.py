"""One accuracy of a comparison, and how it ranks in its column."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_EQUAL = 1e-9


@dataclass(frozen=True)
class Cell:
    """The accuracy (0..1) of one method on one task, over its seeds.

    Attributes:
        values: one accuracy per seed, in the order of the row's seeds.
        standard_error: sample standard deviation / sqrt(seeds); ``None`` for a single seed.
        best: whether its mean is the highest of the column; equal means share this.
        second: whether its mean is the highest below a single best one.
        close: whether it is not best, but below a best cell by at most one standard error of the difference,
            sqrt(se_best^2 + se^2), so that more seeds may reverse the order. Both cells need at least two seeds.
    """

    values: tuple[float, ...]
    mean: float
    standard_error: float | None
    best: bool = False
    close: bool = False
    second: bool = False


def cell_of_seeds(values: Iterable[float | None]) -> Cell | None:
    """Make a cell of one accuracy per seed; None if a seed has no finite accuracy."""
    accuracies = []
    for value in values:
        if value is None or not math.isfinite(value):
            return None
        accuracies.append(value)
    error = statistics.stdev(accuracies) / math.sqrt(len(accuracies)) if len(accuracies) > 1 else None
    return Cell(values=tuple(accuracies), mean=statistics.fmean(accuracies), standard_error=error)


def mark(column: Sequence[Cell | None]) -> list[Cell | None]:
    """Return the column with its best, second and close cells marked; a column with one cell stays unmarked."""
    present = [cell for cell in column if cell is not None]
    if len(present) < 2:
        return list(column)
    top = max(cell.mean for cell in present)
    leaders = [cell for cell in present if top - cell.mean <= _EQUAL]
    behind = [cell.mean for cell in present if top - cell.mean > _EQUAL]
    next_best = max(behind, default=math.inf)
    return [
        None
        if cell is None
        else replace(
            cell,
            best=any(cell is leader for leader in leaders),
            close=_is_close(cell, leaders),
            second=len(leaders) == 1 and abs(cell.mean - next_best) <= _EQUAL,
        )
        for cell in column
    ]


def _is_close(cell: Cell, leaders: Sequence[Cell]) -> bool:
    if cell.standard_error is None or any(cell is leader for leader in leaders):
        return False
    return any(
        leader.standard_error is not None
        and leader.mean - cell.mean <= math.hypot(leader.standard_error, cell.standard_error)
        for leader in leaders
    )
