"""The ledger: a file in the sweep's storage that lists every trial begun so far and how it ended.

`--resume` and `--extend` read the ledger rather than MLflow, because MLflow is for people and may be unavailable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from beamplatform.config.space import Point
from beamplatform.config.trial import Trial
from beamplatform.io.storage import join, read_text, undamaged, write_text

_FILE = "ledger.json"

Role = Literal["search", "final"]
LedgerState = Literal["running", "trained", "stopped", "failed"]


@dataclass
class LedgerEntry:
    """One trial of a sweep.

    Attributes:
        trial: the trial with all its settings resolved.
        role: "search" for a trial that is tried for its validation loss; "final" for the chosen configuration with one
            of the seeds.
        point: the trial's point in the method's search space.
        weights: whether the trained model is kept and asked the test questions.
        state: the state of the training; it stays "running" when the sweep is interrupted.
        why: the reason why the trial failed or was stopped, else empty.
        curve: (optimizer step, validation loss) pairs.
        hours: the sum of all workers' training hours from the first report on, each weighted by its share of a GPU.
    """

    trial: Trial
    role: Role
    point: Point
    weights: bool = True
    state: LedgerState = "running"
    why: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    hours: float = 0.0

    @property
    def loss(self) -> float | None:
        """The last validation loss, or None before the first validation."""
        return self.curve[-1][1] if self.curve else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "trial": self.trial.model_dump(mode="json")}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> LedgerEntry:
        curve = [(int(step), float(loss)) for step, loss in values["curve"]]
        return cls(**{**values, "trial": Trial.model_validate(values["trial"]), "curve": curve})


def load_ledger(storage: str, sweep: str) -> list[LedgerEntry]:
    """Load all entries of a sweep in the order in which they began; an empty list if there is no ledger yet.

    Raises:
        UserError: the file is damaged.
    """
    file = join(storage, sweep, _FILE)
    with undamaged(file):
        text = read_text(file)
        return [LedgerEntry.of_json(values) for values in json.loads(text)] if text is not None else []


def save_ledger(storage: str, sweep: str, entries: Sequence[LedgerEntry]) -> None:
    """Write all entries, replacing the ledger that was written before."""
    write_text(join(storage, sweep, _FILE), json.dumps([entry.as_json() for entry in entries], indent=1))
