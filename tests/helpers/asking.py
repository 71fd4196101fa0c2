"""Engines asked in the simplest way: the completions in the prompts' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beamplatform.errors import UserError
from beamplatform.evaluation.evaluate import Settings, evaluate_all
from beamplatform.evaluation.scores import Evaluation
from beamplatform.inference import Engine, Export, Generation, Request
from beamplatform.tasks import Task
from beamplatform.tasks.record import Record


def complete(
    engine: Engine, prompts: Sequence[str], *, export: Export | None, stop: Sequence[str] = (), **how: Any
) -> list[str]:
    """One model's completion of every prompt."""
    return complete_all(engine, prompts, exports=[export], stop=stop, **how)[0]


def complete_all(
    engine: Engine, prompts: Sequence[str], *, exports: Sequence[Export | None], stop: Sequence[str] = (), **how: Any
) -> list[list[str]]:
    """Every model's completion of every prompt, all asked in one call."""
    requests = [Request(prompt, export) for prompt in prompts for export in exports]
    found = dict(engine.generate(requests, Generation(stop=tuple(stop), **how)))
    assert all(len(completions) == 1 for completions in found.values())
    in_order = [found[index][0] for index in range(len(requests))]
    return [in_order[place :: len(exports)] for place in range(len(exports))]


def evaluate(
    engine: Engine,
    export: Export | None,
    tasks: Sequence[Task],
    records: Mapping[str, list[Record]],
    *,
    settings: Settings | None = None,
) -> Evaluation:
    """`evaluate_all` of one model."""
    events = evaluate_all(engine, [export], tasks, records, settings=settings or Settings())
    (outcome,) = (event.outcome for event in events if event.outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome
