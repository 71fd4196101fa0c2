"""Metrics on their way to MLflow: once, in order, and not lost while the store is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from beamplatform.sweep import recorder as module
from beamplatform.sweep.recorder import Recorder
from beamplatform.tracking import Tracker

TAGS = {"method": "lora", "seed": 0, "sweep": "s", "stage": "train", "preset": "tiny", "configuration": "c"}


@pytest.fixture
def store(tmp_path: Path) -> tuple[Tracker, str]:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "suite")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    return tracker, tracker.start_trial(parent, "t", {}, TAGS)


def history(tracker: Tracker, run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracker.client.get_metric_history(run_id, "train/loss")]


def test_steps_that_a_restarted_worker_repeats_are_written_once(store) -> None:
    tracker, run_id = store
    recorder = Recorder(tracker, [run_id])
    recorder.add(0, [(1, {"train/loss": 3.0}), (2, {"train/loss": 2.0})])
    recorder.add(0, [(2, {"train/loss": 2.0}), (3, {"train/loss": 1.0})])
    recorder.flush()
    assert history(tracker, run_id) == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_store_that_is_away_for_a_while_loses_nothing(store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    tracker, run_id = store
    recorder = Recorder(tracker, [run_id])
    recorder.add(0, [(1, {"train/loss": 3.0})])
    database = tmp_path / "mlflow.db"
    forget_connections = tracker.client._tracking_client.store.engine.dispose
    moved = database.rename(tmp_path / "away.db")
    forget_connections()
    recorder.add(0, [(2, {"train/loss": 2.0})])
    with pytest.raises(ConnectionError, match="1 values are not in it"):
        recorder.flush()
    forget_connections()
    moved.replace(database)
    recorder.add(0, [(3, {"train/loss": 1.0})])
    recorder.flush()
    assert history(tracker, run_id) == [(1, 3.0), (2, 2.0), (3, 1.0)]
