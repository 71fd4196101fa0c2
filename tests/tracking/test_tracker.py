from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beamplatform.errors import UserError
from beamplatform.tracking import Tracker

TAGS = {"stage": "done", "preset": "tiny", "sweep": "s"}

QUIET_PREPARE = """
import sys
from beamplatform.tracking import Tracker
Tracker(sys.argv[1], "first suite").prepare()
"""

# Forked after the import, which takes longer than the writing, and before any of them opens the store.
WRITERS = """
import os, sys
import mlflow.tracking
from beamplatform.tracking import Tracker

def write(uri, parent, number):
    tracker = Tracker(uri, "many")
    for trial in range(2):
        tags = dict(method=f"m{number}", seed=trial, configuration="c", sweep="s", stage="train", preset="")
        run = tracker.start_trial(parent, f"trial-{number}-{trial}", {"writer": number, "trial": trial}, tags)
        for step in range(15):
            tracker.log_metrics(run, [(step, {"train/loss": number + step, "train/learning_rate": 0.1})])
        tracker.finish(run, "FINISHED")

children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        write(*sys.argv[1:], number)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real store, made once: its schema takes seconds. The folder's space is on purpose."""
    folder = tmp_path_factory.mktemp("a store")
    uri = f"sqlite:///{folder}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", QUIET_PREPARE, uri], cwd=folder, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", ""), "making the schema must be silent"
    assert [file.name for file in folder.iterdir()] == ["mlflow.db"]
    return uri


@pytest.fixture
def tracker(uri: str, request: pytest.FixtureRequest) -> Tracker:
    """An experiment of the test's own in the common store."""
    tracker = Tracker(uri, request.node.name)
    tracker.prepare()
    return tracker


def trial_tags(method: str = "lora", seed: int = 0, **more: Any) -> dict[str, Any]:
    return {**TAGS, "method": method, "seed": seed, "configuration": "c1", **more}


def test_preparing_twice_keeps_the_experiment(tracker: Tracker) -> None:
    again = Tracker(tracker.uri, tracker.experiment)
    again.prepare()
    assert again._experiment_id == tracker._experiment_id


def test_a_trial_comes_back_as_it_was_recorded(tracker: Tracker) -> None:
    parent = tracker.start_sweep("s", {"search": {"samples": 2}}, {"preset": "tiny"})
    run = tracker.start_trial(parent, "lora-c1-s3", {"lora": {"r": 8}, "long": "x" * 9000}, trial_tags(seed=3))
    tracker.log_metrics(run, [(1, {"train/loss": 2.0}), (2, {"train/loss": 1.5, "eval/ARC-Easy": 0.25})])
    tracker.log_metrics(run, [(2, {"validation/loss": math.nan})])
    tracker.finish(run, "FINISHED")

    (trial,) = tracker.trial_runs()
    assert (trial.run_id, trial.name, trial.method, trial.seed) == (run, "lora-c1-s3", "lora", 3)
    assert (trial.status, trial.sweep, trial.configuration, trial.preset) == ("FINISHED", "s", "c1", "tiny")
    assert trial.params["lora.r"] == "8" and len(trial.params["long"]) == 6000
    assert trial.metrics["train/loss"] == 1.5 and trial.metrics["eval/ARC-Easy"] == 0.25
    assert math.isnan(trial.metrics["validation/loss"])
    (sweep,) = tracker.sweeps()
    assert (sweep.run_id, sweep.name, sweep.params) == (parent, "s", {"search.samples": "2"})
    assert tracker.client.get_run(run).data.tags["mlflow.parentRunId"] == parent


def test_more_values_than_one_call_takes(tracker: Tracker) -> None:
    parent = tracker.start_sweep("s", {f"p{index}": index for index in range(150)}, {})
    tracker.log_metrics(parent, [(step, {"a": step, "b": -step}) for step in range(1100)])
    history = tracker.client.get_metric_history(parent, "b")
    assert sorted((point.step, point.value) for point in history) == [(step, -step) for step in range(1100)]
    assert len(tracker.client.get_run(parent).data.params) == 150


def test_environment_variables_of_other_runs_change_nothing(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tracker.start_sweep("s", {}, {})
    other = tracker.start_sweep("other", {}, {})
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    run = tracker.client.get_run(tracker.start_trial(parent, "t", {}, trial_tags()))
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.info.run_id != other and run.info.experiment_id == tracker._experiment_id


def test_a_trial_that_could_not_be_found_again_is_refused(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="'t' lacks the tags seed, configuration"):
        tracker.start_trial("p", "t", {}, {**TAGS, "method": "lora"})
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        tracker.finish("p", "DONE")  # type: ignore[arg-type]


def test_unfinished_runs_are_ended_and_finished_ones_kept(tracker: Tracker) -> None:
    parent = tracker.start_sweep("s", {}, {})
    bystander = tracker.start_sweep("another", {}, {})
    done = tracker.start_trial(parent, "done", {}, trial_tags())
    tracker.finish(done, "FINISHED")
    tracker.start_trial(parent, "open", {}, trial_tags(seed=1))
    assert tracker.finish_unfinished(parent, "KILLED") == ["open", "s"]
    assert {run.name: run.status for run in tracker.trial_runs(sweep="s", every_status=True)} == {
        "done": "FINISHED",
        "open": "KILLED",
    }
    assert tracker.client.get_run(parent).info.status == "KILLED"
    assert tracker.client.get_run(bystander).info.status == "RUNNING"
    assert tracker.finish_unfinished(parent, "FAILED") == []


def test_newest_sweep_is_the_default_and_only_finished_trials_count(tracker: Tracker) -> None:
    for name in ("old", "new"):
        parent = tracker.start_sweep(name, {}, {})
        for seed, status in enumerate(("FINISHED", "FAILED")):
            run = tracker.start_trial(parent, f"{name}-{seed}", {}, trial_tags(seed=seed, sweep=name))
            tracker.finish(run, status)  # type: ignore[arg-type]
    assert [sweep.name for sweep in tracker.sweeps()] == ["new", "old"]
    assert [run.name for run in tracker.trial_runs()] == ["new-0"]
    assert [run.name for run in tracker.trial_runs(sweep="old")] == ["old-0"]
    assert [run.name for run in tracker.trial_runs(every_status=True)] == ["new-0", "new-1"]
    with pytest.raises(UserError, match=r"no sweep 'odl'; its sweeps, newest first: new, old"):
        tracker.trial_runs(sweep="odl")


def test_unknown_suite_names_those_with_runs(tracker: Tracker) -> None:
    with pytest.raises(UserError, match=rf"no runs of the suite 'maths'.*{tracker.experiment}"):
        tracker.trial_runs("maths")


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs are recorded"):
        Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense").trial_runs()
    assert list(tmp_path.iterdir()) == []


def test_deleted_experiment_is_named_with_the_way_back(tracker: Tracker) -> None:
    assert tracker._experiment_id is not None
    tracker.client.delete_experiment(tracker._experiment_id)
    with pytest.raises(UserError, match=f"mlflow experiments restore --experiment-id {tracker._experiment_id}"):
        Tracker(tracker.uri, tracker.experiment).prepare()


def test_writing_before_prepare_says_so(uri: str) -> None:
    with pytest.raises(RuntimeError, match=r"call prepare\(\)"):
        Tracker(uri, "never prepared").start_sweep("s", {}, {})


def test_artifacts(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.start_sweep("s", {}, {})
    rows = [{"prompt": "a\nb", "correct": True}, {"prompt": "Ü", "correct": False}]
    tracker.log_table(run, rows[:1], "predictions/boolq.json")
    tracker.log_table(run, rows, "predictions/boolq.json")  # again, after an interruption
    tracker.log_json(run, {"python": "3"}, "environment.json")
    with pytest.raises(FileNotFoundError, match="no files to store"):
        tracker.log_folder(run, tmp_path, "adapter")
    (tmp_path / "adapter.safetensors").write_bytes(b"\0\1")
    tracker.log_folder(run, tmp_path, "adapter")

    store = Path(tracker.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / tracker.experiment / run
    text = (store / "artifacts/predictions/boolq.json").read_text(encoding="utf-8")
    assert (
        json.loads(text) == {"columns": ["prompt", "correct"], "data": [["a\nb", True], ["Ü", False]]} and "Ü" in text
    )
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)  # load_table searches there
    shown = MlflowClient(tracker.uri).load_table(tracker._experiment_id, "predictions/boolq.json", [run])
    assert shown.shape == (2, 2)
    assert json.loads((store / "artifacts/environment.json").read_text()) == {"python": "3"}
    assert (store / "artifacts/adapter/adapter.safetensors").read_bytes() == b"\0\1"
    back = tracker.client.download_artifacts(run, "predictions/boolq.json", str(tmp_path))
    assert Path(back).read_text(encoding="utf-8") == text


def test_ending_a_run_prints_nothing(tracker: Tracker, capfd: pytest.CaptureFixture[str]) -> None:
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    tracker.finish(tracker.start_sweep("s", {}, {}), "FINISHED")
    assert capfd.readouterr() == ("", "")
    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get(), "what keeps a server's client silent as well"


def test_a_tracker_travels_to_workers(tracker: Tracker) -> None:
    parent = tracker.start_sweep("s", {}, {})
    copy: Tracker = pickle.loads(pickle.dumps(tracker))
    copy.set_tags(parent, {"stage": "train"})
    assert tracker.client.get_run(parent).data.tags["stage"] == "train"


def test_four_processes_write_at_once_and_nothing_is_lost(uri: str) -> None:
    tracker = Tracker(uri, "many")
    tracker.prepare()
    parent = tracker.start_sweep("s", {}, {})
    command = [sys.executable, "-c", WRITERS, uri, parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    runs = tracker.trial_runs()
    assert {(run.method, run.seed) for run in runs} == {(f"m{w}", t) for w in range(4) for t in range(2)}
    for run in runs:
        history = tracker.client.get_metric_history(run.run_id, "train/loss")
        number = int(run.params["writer"])
        assert sorted((point.step, point.value) for point in history) == [(s, number + s) for s in range(15)]
