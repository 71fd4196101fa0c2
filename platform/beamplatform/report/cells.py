"""One accuracy of a comparison, and how it stands in its column."""

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
        best: the highest mean of its column (several where they are equal).
        second: the highest mean below those.
        close: not the best, but within one standard error of the difference to a best cell,
            sqrt(se_best^2 + se^2): more seeds may turn the order round. Needs two seeds on both sides.
    """

    values: tuple[float, ...]
    mean: float
    standard_error: float | None
    best: bool = False
    close: bool = False
    second: bool = False


def cell_of_seeds(values: Iterable[float | None]) -> Cell | None:
    """From the accuracies of the seeds; None where one has none."""
    known = []
    for value in values:
        if value is None or not math.isfinite(value):
            return None
        known.append(value)
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Cell(values=tuple(known), mean=statistics.fmean(known), standard_error=error)


def mark(column: Sequence[Cell | None]) -> list[Cell | None]:
    """The column with its best cells marked; a lone method is compared with nobody and stays unmarked."""
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
