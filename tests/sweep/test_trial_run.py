"""What Tune is told of a Train run: report by report, and how it ended."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from beamplatform.sweep.trials.tune_actor import TuneTrialActor


def report(step: int, **metrics: float) -> dict[str, Any]:
    named = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    return {"step": step, "total_steps": 12, "rows": [(step, named)]}


def trial_run(*reports: dict[str, Any], error: BaseException | None = None) -> TuneTrialActor:
    """As `TuneTrialActor.setup` leaves it, its Train run having ended already."""
    run = TuneTrialActor.__new__(TuneTrialActor)
    run._reports = queue.Queue()
    for item in (*reports, None):
        run._reports.put(item)
    run._latest, run._error, run._ended = {}, error, False
    return run


def test_a_result_has_the_step_and_the_latest_losses_flat() -> None:
    run = trial_run(report(4, train_loss=3.0, validation_loss=2.0), report(8, train_loss=1.0), report(12))
    assert run.step() == {
        "step": 4, "total_steps": 12, "train/loss": 3.0, "validation/loss": 2.0,
        "rows": [(4, {"train/loss": 3.0, "validation/loss": 2.0})],
    }  # fmt: skip
    second = run.step()
    assert (second["step"], second["train/loss"], second["validation/loss"]) == (8, 1.0, 2.0)
    assert "done" not in second


def test_the_last_step_is_told_with_the_export() -> None:
    run = trial_run(report(12, train_loss=1.0))
    assert run.step() == {
        "step": 12, "total_steps": 12, "train/loss": 1.0, "rows": [(12, {"train/loss": 1.0})],
        "done": True, "exported": True,
    }  # fmt: skip


def test_a_failed_export_loses_no_metrics_and_cannot_be_taken_for_a_stop() -> None:
    run = trial_run(report(12, train_loss=1.0), error=OSError("disk full"))
    assert run.step() == {"rows": [(12, {"train/loss": 1.0})]}, "no step: no scheduler decides"
    with pytest.raises(OSError, match="disk full"):
        run.step()


def test_an_error_comes_after_the_reports_before_it() -> None:
    run = trial_run(report(4), error=FloatingPointError("not a number"))
    assert run.step()["step"] == 4
    with pytest.raises(FloatingPointError):
        run.step()
