"""The MLflow server is gone for a minute in the middle of a sweep: training goes on, nothing is missing afterwards."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from forked import Program
from mlflow.tracking import MlflowClient
from mlflow_server import Server

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("forked_ray")]

SWEEP = [
    "--suite", "commonsense", "--preset", "tiny", "--methods", "beamlora,lora", "--seeds", "0", "--name", "s",
    "--set", "training.max_steps=60", "--set", "training.log_every=2", "--set", "evaluation.max_records=4",
    "--set", "data.validation_records=16",
]  # fmt: skip
OUTAGE = 60.0
"""Seconds."""


@pytest.mark.timeout(1200)
def test_a_minute_without_the_server(root: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    output = tmp_path / "output.txt"
    sweep = Program(
        root / "pipelines" / "sweep.py", SWEEP, stdout=output, stderr=output, folder=tmp_path, environment=environment
    )
    try:
        log = tmp_path / "runs" / "s" / "log.txt"
        wait(lambda: log.exists() and log.read_text().count("Reporting training result") >= 2, sweep, tmp_path)
        server.kill()
        killed = time.monotonic()
        exports = tmp_path / "runs" / "s" / "trials"
        wait(lambda: len(list(exports.glob("*/export/trial.json"))) == 2, sweep, tmp_path)  # trained without it
        time.sleep(max(0.0, OUTAGE - (time.monotonic() - killed)))
        server.start()
        assert sweep.wait(timeout=900) == 0, (tmp_path / "output.txt").read_text()

        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("commonsense")
        runs = client.search_runs([experiment.experiment_id], "tags.sweep = 's' and tags.method != ''")
        assert len(runs) == 2 and {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            name = run.info.run_name
            rows = json.loads((exports / name / "export" / "metrics.json").read_text())
            assert len(rows) > 30
            expected = Counter((metric, step, value) for step, row in rows for metric, value in row.items())
            found = Counter(
                (point.key, point.step, point.value)
                for metric in run.data.metrics
                if not metric.startswith(("eval/", "standard_error/"))  # written once by the sweep, at its end
                for point in client.get_metric_history(run.info.run_id, metric)
            )
            assert found == expected, f"{name}: missing {expected - found}, too many {found - expected}"
            assert "eval/average" in run.data.metrics
    finally:
        sweep.kill()
        server.kill()


def wait(reached, sweep: Program, folder: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert sweep.poll() is None and time.monotonic() < deadline, (folder / "output.txt").read_text()
        time.sleep(0.2)
