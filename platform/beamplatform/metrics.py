"""Names of metrics that more than one part of the platform reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TRAIN_LOSS = "train/loss"
VALIDATION_LOSS = "validation/loss"
SECONDS = "train/seconds"
MEMORY = "train/peak_memory_bytes"
WORKERS = "train/workers"
TRAINED = "train/trainable_parameters"
FINAL_PARAMETERS = "train/final_parameters"


def validation_curve(rows: Iterable[tuple[int, Mapping[str, float]]]) -> list[tuple[int, float]]:
    """(Optimizer step, validation loss) of every row of metrics that has a validation loss."""
    return [(step, metrics[VALIDATION_LOSS]) for step, metrics in rows if VALIDATION_LOSS in metrics]
