"""`pipelines/compare.py` as a person runs it, on a small real store."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import pytest

from beamplatform.errors import UserError
from beamplatform.tracking import Tracker

Main = Callable[[Sequence[str]], int]

# method, configuration, seed, validation loss, BoolQ, PIQA. The method lora has a configuration "b" with the
# better scores and the worse loss.
TRIALS = [
    ("beamlora", "a", 0, 1.0, 0.70, 0.80),
    ("beamlora", "a", 1, 1.2, 0.74, 0.80),
    ("lora", "a", 0, 1.1, 0.60, 0.70),
    ("lora", "a", 1, 1.1, 0.60, 0.74),
    ("lora", "b", 0, 1.9, 0.99, 0.99),
    ("lora", "b", 1, 1.9, 0.99, 0.99),
]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the default store: the sweeps "first", with scores, and "second", which failed."""
    folder = tmp_path_factory.mktemp("store")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "commonsense")
    tracker.prepare()
    parent = tracker.start_sweep("first", {}, {})
    for method, configuration, seed, loss, boolq, piqa in TRIALS:
        tags = {"method": method, "seed": seed, "sweep": "first", "configuration": configuration}
        run = tracker.start_trial(
            parent,
            f"{method}-{configuration}-seed{seed}",
            {"r": 8 if configuration == "a" else 16, "seed": seed},
            {**tags, "stage": "done", "preset": "tiny"},
        )
        scores = {"eval/boolq": boolq, "eval/piqa": piqa, "eval/average": (boolq + piqa) / 2}
        tracker.log_metrics(run, [(0, {"validation/loss": loss, **scores})])
        tracker.finish(run, "FINISHED")
    tracker.finish(parent, "FINISHED")
    failed = tracker.start_sweep("second", {}, {})
    tags = {"method": "lora", "seed": 0, "sweep": "second", "configuration": "a"}
    run = tracker.start_trial(failed, "lora-a-seed0", {}, {**tags, "stage": "train", "preset": "tiny"})
    tracker.finish_unfinished(failed, "FAILED")
    return folder


@pytest.fixture(scope="session")
def main(root: Path) -> Main:
    """The pipeline's `main` without a process around it, where the exit code is not what is tested."""
    spec = importlib.util.spec_from_file_location("compare_pipeline", root / "pipelines" / "compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Main = module.main
    return main


def compare(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return forked.run(root / "pipelines" / "compare.py", *arguments, folder=folder, environment=environment)


def test_the_table_the_files_and_the_way_to_the_ui(root: Path, store: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder"
    done = compare(root, store, "--suite", "commonsense", "--sweep", "first", "--output", str(output))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    first = next(line.split() for line in lines if line.strip().startswith("BeamLoRA"))
    assert first == ["BeamLoRA", "72.0", "±2.0*", "80.0", "±0.0*", "76.0", "±1.0*", "2"]
    second = next(line.split() for line in lines if line.strip().startswith("LoRA"))
    assert second == ["LoRA", "60.0", "±0.0°", "72.0", "±2.0°", "66.0", "±1.0°", "2"], "chosen by loss, not by score"
    names = {f"comparison.{end}" for end in ("csv", "html", "md", "png", "svg", "tex")}
    assert names <= {path.name for path in output.iterdir()}
    assert "**72.0 ±2.0**" in (output / "comparison.md").read_text(encoding="utf-8")
    assert lines[-1].startswith("MLflow UI: ")
    assert lines[-1].endswith(f"ui --backend-store-uri sqlite:///{store}/mlflow.db --host 127.0.0.1 --port 5000")


def test_store_from_the_environment_and_a_chosen_order(
    main: Main,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    options = ["--suite", "commonsense", "--sweep", "first", "--methods", "lora,beamlora", "--tasks", "piqa"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "BoolQ" not in printed
    assert printed.index(" LoRA") < printed.index(" BeamLoRA")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_compare_is_one_line_and_exit_code_2(root: Path, store: Path) -> None:
    done = compare(root, store, "--suite", "commonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: suite 'commonsense', sweep 'second': no finished trial with scores to compare: 1 FAILED "
        "(sweeps, newest first: second, first)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "maths"], "suites with runs there: commonsense"),
        (
            ["--suite", "commonsense", "--sweep", "third"],
            "no sweep 'third'; its sweeps, newest first: second, first",
        ),
        (
            ["--suite", "commonsense", "--sweep", "first", "--methods", "lara"],
            "there are scores of beamlora, lora",
        ),
        (
            ["--suite", "commonsense", "--sweep", "first", "--output", "mlflow.db"],
            "--output mlflow.db: File exists",
        ),
    ],
)
def test_wrong_names_are_answered_with_what_there_is(
    main: Main, store: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_runs_stays_empty(main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=f"no runs are recorded at {tmp_path}/mlflow.db"):
        main(["--suite", "commonsense"])
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_slow(root: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-X", "importtime", str(root / "pipelines" / "compare.py"), "--help"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "--tracking-uri" in done.stdout
    imported = {row.rpartition("|")[2].strip().partition(".")[0] for row in done.stderr.splitlines()}
    slow = {"torch", "transformers", "peft", "ray", "mlflow", "pandas", "numpy", "matplotlib", "datasets", "fsspec"}
    assert "beamplatform" in imported and not imported & slow
