"""The smallest sweeps that show all there is to show."""

from __future__ import annotations

import sys
from pathlib import Path

SMALL = [
    "--suite", "commonsense", "--preset", "tiny",
    "--set", "training.log_every=5",
    "--set", "data.validation_records=32", "--set", "evaluation.max_records=8",
]  # fmt: skip

RATES = {"loguniform": [1e-4, 1e-2]}
"""A space for the learning rate, around the tiny preset's."""


def command(root: Path, *arguments: str, probe: bool = False) -> list[str]:
    return [
        sys.executable,
        str(root / "pipelines" / "sweep.py"),
        *SMALL,
        *(() if probe else ("--no-probe",)),
        *arguments,
    ]
