"""The real sweep: Ray, Tune, DeepSpeed on two workers, evaluation and MLflow, read back with MLflow's own client."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import forked
import psutil
import pytest
from small import SMALL, command
from waiting import wait_until

from beamplatform.evaluation.predictions import read_predictions
from beamplatform.tasks import TASKS

pytestmark = pytest.mark.usefixtures("forked_ray")


def test_it_ends_well_and_prints_a_table(swept) -> None:
    folder, done = swept
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("This is the embedded world")
    assert re.search(r"method +.*BoolQ.*average", done.stdout, re.IGNORECASE)
    assert re.search(r"^ +BeamLoRA +\d", done.stdout, re.MULTILINE) and re.search(
        r"^ +DoRA +\d", done.stdout, re.MULTILINE
    )
    assert "mlflow ui" in done.stdout and "127.0.0.1" in done.stdout
    assert str(folder / "runs" / "first" / "log.txt") in done.stdout
    method, seconds, _, _ = probe_in(done.stdout)
    assert method == "dora" and 0 < float(seconds) < 10
    assert "RayTrainWorker" not in done.stdout + done.stderr, "Ray's lines belong in the log"
    assert "RayTrainWorker" in (folder / "runs" / "first" / "log.txt").read_text()
    kept = {path.name for path in (folder / "runs" / "first").iterdir()}
    assert kept == {"comparison", "ledger.json", "lock", "log.txt", "sweep.json", "trials"}, "nothing of Ray's own"


def test_mlflow_holds_parent_children_metrics_and_artifacts(swept) -> None:
    from mlflow.tracking import MlflowClient

    folder, _ = swept
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("commonsense").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["method"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1 and set(children) == {"beamlora", "dora"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"comparison", "environment.json", "preset.json"} <= names
    for method, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["role"] == "final" and "torch==" in run.data.tags["packages"]
        assert run.data.tags["sweep"] == "first" and run.data.tags["seed"] == "0"
        for tag in ("data.fingerprint", "mlflow.source.git.commit", "git.dirty", "python", "hardware", "command_line",
                    "packages", "code", "context"):  # fmt: skip
            assert run.data.tags[tag] == parents[0].data.tags[tag], tag
        assert run.data.params["training.workers"] == "2" and run.data.params["method"] == method
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [5, 10, 15, 20]
        for metric in (
            "train/learning_rate",
            "train/tokens_per_second",
            "train/peak_memory_bytes",
            "train/trainable_parameters",
            "validation/loss",
        ):
            assert metric in run.data.metrics
        tasks = [key for key in run.data.metrics if key.startswith("eval/") and key != "eval/average"]
        assert len(tasks) == 8
        mean = sum(run.data.metrics[key] for key in tasks) / 8
        assert run.data.metrics["eval/average"] == pytest.approx(mean)
        files = [file.path for file in client.list_artifacts(run.info.run_id, "predictions")]
        assert sorted({Path(file).suffix for file in files}) == [".json", ".parquet"] and len(files) == 16
        weights = "adapter_model.safetensors" if method == "beamlora" else "model.safetensors"
        assert (Path(run.data.tags["export"]) / weights).is_file()
        assert run.data.tags["stage"] == "done"
    page = client.download_artifacts(parents[0].info.run_id, "comparison/comparison.html")
    assert "Which rank replaced which" in Path(page).read_text()
    (version,) = client.search_model_versions("name = 'commonsense-beamlora'")
    assert version.run_id == children["beamlora"].info.run_id and "Base model: tiny" in version.description
    files = {Path(f.path).name for f in client.list_artifacts(children["beamlora"].info.run_id, "export")}
    assert "adapter_model.safetensors" in files, "an adapter is an artifact; a merged model would be too large"
    beam = client.get_metric_history(children["beamlora"].info.run_id, "beam/threshold")
    assert [point.step for point in beam] == [2, 4, 6, 8, 10, 12]


def test_every_stored_score_follows_from_its_predictions(swept) -> None:
    from mlflow.tracking import MlflowClient

    folder, _ = swept
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(
        [client.get_experiment_by_name("commonsense").experiment_id], "tags.method = 'beamlora'"
    )
    for file in client.list_artifacts(run.info.run_id, "predictions"):
        task, local = Path(file.path).stem, client.download_artifacts(run.info.run_id, file.path)
        if file.path.endswith(".json"):
            table = json.loads(Path(local).read_text())
            found = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            again = [TASKS[task].extract(row["completion"]) == row["answer"] for row in found]
        else:
            again = [TASKS[task].extract(p.completion) == p.answer for p in read_predictions(Path(local))]
        assert len(again) == 8
        accuracy = sum(again) / len(again)
        assert run.data.metrics[f"standard_error/{task}"] == pytest.approx((accuracy * (1 - accuracy) / 8) ** 0.5)
        assert accuracy == pytest.approx(run.data.metrics[f"eval/{task}"])


def test_one_adapter_is_scored_as_the_sweep_scored_it(swept, root: Path, tmp_path: Path) -> None:
    folder, _ = swept
    export = next((folder / "runs" / "first" / "trials").glob("beamlora-*")) / "export"
    options = [*SMALL, "--adapter", export, "--output", "scores"]
    done = forked.run(root / "pipelines" / "evaluate.py", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    from beamplatform.tracking import Tracker

    runs = Tracker(f"sqlite:///{folder}/mlflow.db", "commonsense").trial_runs(sweep="first")
    (run,) = [run for run in runs if run.method == "beamlora"]
    assert scores["average"] == pytest.approx(run.metrics["eval/average"])


@pytest.mark.slow
def test_a_model_is_evaluated_beside_training_where_cores_are_spare(root: Path, tmp_path: Path) -> None:
    arguments = ["--methods", "lora", "--seeds", "0,1", "--max-concurrent", "1", "--set", "training.max_steps=80"]
    line = command(root, *arguments, "--name", "beside", "--set", "evaluation.max_records=2")
    done = forked.run(*line[1:], folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.findall(r"^\[ *\d+ s\] (trained|evaluated) +lora-\w+-seed\d", done.stdout, re.MULTILINE)
    assert told == ["trained", "evaluated", "trained", "evaluated"], done.stdout


def test_a_name_is_used_once(swept, root: Path) -> None:
    folder, _ = swept
    done = forked.run(*command(root, "--name", "first")[1:], folder=folder, timeout=900)
    assert done.returncode == 2 and re.search("error: --name first: .* exists already", done.stderr), done.stderr


@pytest.mark.slow
def test_own_data_in_a_relative_folder(root: Path, tmp_path: Path) -> None:
    """Workers run in folders of their own, so a relative path must not reach them."""
    from beamplatform.world import records

    for split in ("train", "test"):
        path = tmp_path / "mine" / "boolq" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records("boolq", split)[:64]))
    arguments = [
        "--suite",
        "commonsense",
        "--preset",
        "tiny",
        "--method",
        "lora",
        "--data-dir",
        "mine",
        "--name",
        "own",
    ]
    arguments += ["--set", "evaluation.tasks=[boolq]", "--set", "training.max_steps=2", "--set", "training.warmup=0"]
    arguments += ["--set", "data.validation_records=8", "--set", "evaluation.max_records=8"]
    done = forked.run(root / "pipelines" / "train.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "embedded world" not in done.stdout
    assert "BoolQ" in done.stdout


def probe_in(output: str) -> tuple[str | Any, ...]:
    """The probe's method, seconds a step, GiB of a worker, and GiB as estimated."""
    found = re.search(
        r"^Probe \(20 steps of (\w+)\): (\S+) s a step, .* to start, (\S+) GiB for a worker at most "
        r"\(estimated (\S+) GiB\)\. Training takes about",
        output,
        re.MULTILINE,
    )
    assert found, output
    return found.groups()


@pytest.mark.parametrize("during", ["trials", pytest.param("probe", marks=pytest.mark.slow)])
def test_ctrl_c_records_killed_runs_and_leaves_no_process(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """Its workers are as a user's, not forked: they are the sweep's own descendants, and their memory is their own."""
    monkeypatch.delenv("RAY_RUNTIME_ENV_HOOK", raising=False)
    arguments = [
        "--methods",
        "lora,beamlora,dora",
        "--seeds",
        "0",
        "--name",
        "stopped",
        "--set",
        "training.max_steps=5000",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    options = {"output": tmp_path, "folder": tmp_path, "environment": environment, "session": True}
    process = forked.start(*command(root, *arguments, probe=True)[1:], **options)
    log = tmp_path / "runs" / "stopped" / "log.txt"

    def reports() -> int:
        return log.read_text().count("Reporting training result") if log.exists() else 0

    if during == "trials":
        wait_until(lambda: process.stdout.exists() and "Probe (" in process.stdout.read_text(), 600)
    before = reports()
    wait_until(lambda: reports() > before, 600)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 130, errors
    if during == "trials":
        _, _, taken, estimated = probe_in(output)
        assert 0.85 <= float(taken) / float(estimated) <= 1.15, "the whole of a worker's process, against the plan"
    assert ("KILLED" in errors or during == "probe") and "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive, [child.cmdline() for child in alive]

    from beamplatform.tracking import Tracker

    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense")
    statuses = {run.name.split("-")[0]: run.status for run in tracker.trial_runs(sweep="stopped", every_status=True)}
    begun = {"lora": "KILLED", "beamlora": "KILLED"} if during == "trials" else {}
    assert statuses == begun, "there was room for two; the third was not begun"
    assert [sweep.status for sweep in tracker.sweeps()] == ["KILLED"]
