"""What is recorded of a sweep and of a trial, as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]
STATUSES: tuple[Status, ...] = ("FINISHED", "FAILED", "KILLED")

TRIAL_TAGS = ("method", "seed", "sweep", "stage", "preset", "configuration")
"""What every trial is found by; ``configuration`` names its hyperparameters without the seed."""

ENDS = frozenset({"error", "stopped"})
"""Tags that say why a run ended before its time."""

NOTE = "note/"
"""The tags ``note/<task>``: what a reader of the task's score must know."""

PARAM_LIMIT = 6000
"""Longest parameter value MLflow stores: ``MAX_PARAM_VAL_LENGTH`` of mlflow.utils.validation."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as MLflow holds it.

    Attributes:
        metrics: the value of the last step of each metric; ``eval/<task>`` are accuracies in 0..1.
        params: flat dotted names of the suite; every value as text.
        configuration: equal for trials that differ in nothing but the seed.
        status: FINISHED, FAILED, KILLED or RUNNING.
        started: milliseconds since the epoch.
        role: search: tried for its validation loss; final: the chosen configuration; empty: not recorded.
        context: of its sweep when it was begun; a sweep that was changed later has another one.
        why: it was stopped, or failed.
        notes: task -> what a reader of its score must know.
    """

    run_id: str
    name: str
    method: str
    seed: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    status: str
    sweep: str
    configuration: str
    preset: str = ""
    started: int = 0
    role: str = ""
    context: str = ""
    why: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepRun:
    """The parent run of one sweep. ``started`` is in milliseconds since the epoch."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    status: str
    started: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested parameters as MLflow stores them: dotted names, values as text.

    Text stays as it is, everything else is written as JSON (``true``, ``null``, ``[1, 2]``). A value beyond
    MLflow's limit is cut and ends in an ellipsis; the whole of it stands in the resolved configuration among
    the artifacts.
    """
    return {name: _as_text(value) for name, value in _leaves(params, "")}


def _leaves(params: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= PARAM_LIMIT else text[: PARAM_LIMIT - 1] + "…"
