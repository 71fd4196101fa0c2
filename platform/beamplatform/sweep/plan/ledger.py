"""What a sweep has decided and seen, in its storage: every trial that was begun, and how each ended.

MLflow is for people and may be away; this is what `--resume` and `--extend` go by.
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
State = Literal["running", "trained", "stopped", "failed"]


@dataclass
class LedgerEntry:
    """One trial of a sweep.

    Attributes:
        trial: resolved.
        role: search: tried for its validation loss; final: the chosen configuration with a seed of its own.
        point: where it lies in the method's search space.
        weights: whether its model is kept, and asked the test questions.
        state: of the training; running also where the sweep was interrupted.
        why: it failed or was stopped.
        curve: (optimizer step, validation loss).
        hours: of all its workers (or their shares of GPUs) together, from its first report on.
    """

    trial: Trial
    role: Role
    point: Point
    weights: bool = True
    state: State = "running"
    why: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    hours: float = 0.0

    @property
    def loss(self) -> float | None:
        """The last validation loss; None where there is none yet."""
        return self.curve[-1][1] if self.curve else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "trial": self.trial.model_dump(mode="json")}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> LedgerEntry:
        curve = [(int(step), float(loss)) for step, loss in values["curve"]]
        return cls(**{**values, "trial": Trial.model_validate(values["trial"]), "curve": curve})


def load_ledger(storage: str, sweep: str) -> list[LedgerEntry]:
    """All entries of a sweep, in the order in which they were begun; none where it has not begun.

    Raises:
        UserError: the file is damaged.
    """
    file = join(storage, sweep, _FILE)
    with undamaged(file):
        text = read_text(file)
        return [LedgerEntry.of_json(values) for values in json.loads(text)] if text is not None else []


def save_ledger(storage: str, sweep: str, entries: Sequence[LedgerEntry]) -> None:
    """Write all entries, in place of what was written before."""
    write_text(join(storage, sweep, _FILE), json.dumps([entry.as_json() for entry in entries], indent=1))
