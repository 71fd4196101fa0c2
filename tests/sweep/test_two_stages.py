"""A search that stops trials, interrupted, resumed and extended: real Ray, Optuna, DeepSpeed and MLflow."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import forked
import pytest
from small import RATES, command

from beamplatform.tracking import Tracker
from beamplatform.tracking.runs import TrialRecord

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("forked_ray")]

SWEEP = [
    "--methods", "lora", "--search", "asha", "--trials", "4", "--seeds", "0", "--max-concurrent", "1",
    "--set", f"methods.lora.learning_rate={json.dumps(RATES)}", "--set", "search.reduction=2",
    "--set", "training.max_steps=20", "--set", "training.warmup=0", "--set", "evaluation.max_records=2",
]  # fmt: skip


def run(root: Path, folder: Path, *arguments: str) -> str:
    """With no more options than these: the sweep itself knows the others."""
    line = [command(root)[1], "--suite", "commonsense", "--max-concurrent", "2", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = forked.run(*line, folder=folder, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(folder: Path) -> dict[str, TrialRecord]:
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "commonsense")
    return {run.name: run for run in tracker.trial_runs(sweep="s", every_status=True)}


def ledger(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "runs" / "s" / "ledger.json").read_text())


@pytest.mark.timeout(1200)
def test_a_search_is_interrupted_resumed_and_extended(root: Path, tmp_path: Path) -> None:
    # Interrupted after its first trial.
    process = forked.start(
        *command(root, *SWEEP, "--name", "s")[1:], output=tmp_path, folder=tmp_path, session=True,
        environment={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
    )  # fmt: skip
    deadline = time.monotonic() + 600
    file = tmp_path / "runs" / "s" / "ledger.json"
    while time.monotonic() < deadline and not (file.exists() and len(ledger(tmp_path)) == 2):
        time.sleep(0.5)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 130, errors
    before = ledger(tmp_path)
    assert [entry["state"] for entry in before] == ["trained", "running"]

    # Resumed: the first trial is left alone, the second goes on, and the search comes to its choice.
    told = run(root, tmp_path, "--resume")
    entries = ledger(tmp_path)
    search = [entry for entry in entries if entry["role"] == "search"]
    (final,) = [entry for entry in entries if entry["role"] == "final"]
    assert len(search) == 4 and [entry["point"] for entry in search[:2]] == [entry["point"] for entry in before]
    assert f"trained   {name(before[0])}" not in told
    trained = [entry for entry in search if entry["state"] == "trained"]
    assert {entry["state"] for entry in search} == {"trained", "stopped"}
    assert final["point"] == min(trained, key=lambda entry: entry["curve"][-1][1])["point"]
    assert {entry["trial"]["seed"] for entry in search} == {1000} and final["trial"]["seed"] == 0

    # MLflow says the same; the test tasks were asked of the final trial only, and only its model was kept.
    found = trials(tmp_path)
    assert set(found) == {name(entry) for entry in entries}
    for entry in entries:
        run_of = found[name(entry)]
        scored = [metric for metric in run_of.metrics if metric.startswith("eval/")]
        export = tmp_path / "runs" / "s" / "trials" / name(entry) / "export"
        assert run_of.role == entry["role"] and bool(scored) == (entry["role"] == "final")
        assert (export / "adapter_model.safetensors").exists() == (entry["role"] == "final")
        if entry["state"] == "stopped":
            assert run_of.status == "KILLED"
            assert re.match(r"stopped by ASHA at step \d+: validation loss \S+ is not among the best 1/2", run_of.why)
        else:
            assert run_of.status == "FINISHED"
    page = (tmp_path / "runs" / "s" / "comparison" / "comparison.html").read_text()
    assert "Search: stage one" in page and "Search: stage one" in told

    # Extended by a seed and a method: what is done is not run again.
    times = {name(entry): ended(tmp_path, name(entry)) for entry in entries}
    told = run(root, tmp_path, "--extend", "s", "--seeds", "1", "--methods", "dora", "--set", "training.log_every=10")
    more = ledger(tmp_path)
    assert more[: len(entries)] == entries
    added = [(entry["trial"]["method"], entry["role"], entry["trial"]["seed"]) for entry in more[len(entries) :]]
    assert sorted(added) == [("dora", "final", 0), ("dora", "final", 1), ("lora", "final", 1)]
    assert {known: ended(tmp_path, known) for known in times} == times
    assert re.search(r"^ +DoRA", told, re.MULTILINE) and "Changed since" not in told

    # Nothing changed, nothing new; a changed suite makes new trials and says which, here before they are begun.
    again = run(root, tmp_path, "--extend", "s")
    assert "New:" not in again and "Changed since" not in again and "] trained" not in again
    assert ledger(tmp_path) == more
    told = run(root, tmp_path, "--extend", "s", "--set", "training.max_steps=10", "--dry-run")
    assert "Changed since: training.max_steps: 20 -> 10" in told
    assert "8 trials were made with settings that have changed since" in told
    new = re.search(r"^New: (.*)$", told, re.MULTILINE)
    assert new and len(re.findall(r"dora-[0-9a-f]{8}-seed[01]\b", new[1])) == 2 and "with the seeds 0, 1" in new[1]
    assert not any(name(entry) in told for entry in more) and "Nothing was started" in told


def name(entry: dict[str, Any]) -> str:
    from beamplatform.config.trial import Trial

    return Trial.model_validate(entry["trial"]).name


def ended(folder: Path, trial: str) -> int:
    client = Tracker(f"sqlite:///{folder}/mlflow.db", "commonsense").client
    return int(client.get_run(trials(folder)[trial].run_id).info.end_time)
