"""MLflow: one experiment per suite, one parent run per sweep, one child run per trial."""

from __future__ import annotations

from beamplatform.tracking.environment import environment, environment_tags
from beamplatform.tracking.runs import STATUSES, TRIAL_TAGS, Status, SweepRun, TrialRecord
from beamplatform.tracking.store import resolve_uri, ui_command
from beamplatform.tracking.tracker import Tracker

__all__ = [
    "STATUSES",
    "TRIAL_TAGS",
    "Status",
    "SweepRun",
    "Tracker",
    "TrialRecord",
    "environment",
    "environment_tags",
    "resolve_uri",
    "ui_command",
]
