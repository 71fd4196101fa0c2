"""Plain records of a sweep and of a trial, as MLflow holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]
STATUSES: tuple[Status, ...] = ("FINISHED", "FAILED", "KILLED")

TRIAL_TAGS = ("method", "seed", "sweep", "stage", "preset", "configuration")
"""Tags by which every trial is found; ``configuration`` names its hyperparameters without the seed."""

ENDS = frozenset({"error", "stopped"})
"""Tags that say why a run ended before its time."""

NOTE = "note/"
"""Prefix of the tags ``note/<task>``, which say what a reader of the task's score must know."""

PARAM_LIMIT = 6000
"""Longest parameter value that MLflow stores: ``MAX_PARAM_VAL_LENGTH`` of mlflow.utils.validation."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as MLflow holds it.

    Attributes:
        metrics: each metric's value at its last step; ``eval/<task>`` is an accuracy in 0..1.
        params: the suite's values under flat dotted names; every value is text.
        configuration: a name that is equal for trials that differ only in the seed.
        status: FINISHED, FAILED, KILLED or RUNNING.
        started: when the trial began, in milliseconds since the epoch.
        role: "search" for a trial that is tried for its validation loss; "final" for the chosen configuration; empty
            if it was not recorded.
        context: the sweep's context when the trial began; a sweep that is changed later gets another context.
        why: the reason why the trial was stopped or failed, else empty.
        notes: task -> what a reader of the task's score must know.
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
    """Flatten nested parameters to dotted names and text values, as MLflow stores them.

    Text stays as it is; every other value is written as JSON (``true``, ``null``, ``[1, 2]``). A value beyond
    MLflow's limit is cut and ends in an ellipsis. The resolved configuration among the artifacts holds the
    whole value.
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
