"""Tests the differences between methods by their answers to each question, which it reads from MLflow."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from beamplatform.evaluation.predictions import by_question, read_predictions
from beamplatform.report.comparison import Comparison, Row
from beamplatform.report.statistics import TaskAnswers, compare_all

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from beamplatform.tracking import Tracker

OURS = "beamlora"


def with_differences(comparison: Comparison, tracker: Tracker) -> Comparison:
    """Test BeamLoRA (or, if it takes no part, the first method) against every other method.

    Both methods must have been asked the same questions. A method without predictions, or with other questions, is not
    tested, and a remark says so.

    Returns:
        The comparison with `differences`, and with these remarks in `uneven`.
    """
    ours = comparison.row(OURS) or comparison.rows[0]
    if not comparison.tasks or len(comparison.rows) < 2:
        return comparison
    mine = _answers(ours, comparison.tasks, tracker)
    others: dict[str, TaskAnswers] = {}
    remarks: list[str] = []
    for row in comparison.rows:
        if row is ours:
            continue
        theirs = _answers(row, comparison.tasks, tracker)
        if mine is None or theirs is None:
            remarks.append(f"{row.method}: no predictions to test the difference with")
        elif {task: documents for task, (documents, _) in mine.items()} != {t: d for t, (d, _) in theirs.items()}:
            remarks.append(f"{row.method}: was asked other questions, so the difference is not tested")
        else:
            others[row.method] = {task: shares for task, (_, shares) in theirs.items()}
    if mine is None:
        return replace(comparison, uneven=(*comparison.uneven, *remarks))
    seeds = {row.method: len(row.seeds) for row in comparison.rows}
    differences = compare_all(ours.method, {task: shares for task, (_, shares) in mine.items()}, others, seeds)
    return replace(comparison, differences=tuple(differences), uneven=(*comparison.uneven, *remarks))


def _answers(
    row: Row, tasks: tuple[str, ...], tracker: Tracker
) -> dict[str, tuple[list[str], NDArray[np.float64]]] | None:
    """Return task -> (hashes of the questions, share of correct answers to each question over seeds and samples).

    Returns None if a seed has no predictions for a task, or was asked other questions than the seeds before it.
    """
    import numpy as np

    by_task = {}
    with tempfile.TemporaryDirectory() as name:
        for task in tasks:
            documents: list[str] | None = None
            right = []
            for run_id in row.run_ids:
                folder = Path(name) / run_id
                folder.mkdir(exist_ok=True)
                file = tracker.download(run_id, f"predictions/{task}.parquet", folder)
                if file is None:
                    return None
                questions = by_question(read_predictions(file))
                hashes = [answers[0].document for answers in questions]
                if documents is not None and hashes != documents:
                    return None
                documents = hashes
                right.append([sum(answer.correct for answer in answers) / len(answers) for answers in questions])
            by_task[task] = (documents or [], np.mean(right, axis=0))
    return by_task
