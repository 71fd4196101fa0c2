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
    given = {argument.partition("=")[0] for argument in arguments}  # no key is set twice
    pairs = zip(SMALL[::2], SMALL[1::2], strict=True)
    small = [part for pair in pairs if pair[1].partition("=")[0] not in given for part in pair]
    return [
        sys.executable,
        str(root / "pipelines" / "sweep.py"),
        *small,
        *(() if probe else ("--no-probe",)),
        *arguments,
    ]
