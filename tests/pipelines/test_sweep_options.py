"""Options of `pipelines/sweep.py` and `train.py` that mean something only together, or in a sweep that is extended.

In this process: nothing is started, so the pipelines' `main` can be called as a function.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from beamplatform.config.suite import load_preset
from beamplatform.errors import UserError
from beamplatform.sweep.plan.saved_sweep import SavedSweep

TINY = ["--suite", "commonsense", "--preset", "tiny"]

Main = Callable[..., int]


@pytest.fixture
def call(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Call the `main` of a pipeline in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(pipeline: str, *line: str) -> int:
        spec = importlib.util.spec_from_file_location(pipeline, root / "pipelines" / f"{pipeline}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return int(module.main(line))

    return call


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--methods", ","], "--methods ,: must be a list such as A,B"),
        (["--methods", "lora,lora"], "--methods lora,lora: lora is listed twice"),
        (["--methods", "all,lora"], "all means every method; name it alone"),
        (["--seeds", "-1"], "--seeds -1: .*greater than or equal to 0, got -1"),
        (["--seeds", "4294967296"], "--seeds 4294967296: .*less than 4294967296"),
        (["--seeds", "0-3,2"], "--seeds 0-3,2: 2 is listed twice"),
        (["--budget", ".inf"], "--budget .inf: input should be a finite number"),
        (["--trials", "10001"], "--trials 10001: .*less than or equal to 10000"),
        (["--set", "training.workers={min: 1, max: 1000000000000}"], "max: .*less than or equal to 1000000"),
        (["--set", "evaluation={temperature: 1e-300, samples: 2}"], "temperature must be 0, or at least 0.01"),
        (["--set", "evaluation={temperature: 1, samples: 2, pass_at: [1, 1]}"], "pass_at: 1 is listed twice"),
        (["--set", "data.columns={instruction: output}"], "must be two fields, got 'output' for both"),
        (["--set", "data.columns={output: response}"], "columns names fields of train_source, which is not given"),
        (["--set", "methods.lora.target_modules=[q_proj, q_proj]"], "'q_proj' is listed twice"),
        (["--budget", "2", "--trials", "3"], "--trials 3, --budget 2: give one of the two"),
        (["--budget", "2", "--set", "search.trials=3"], "--trials 3, --budget 2: give one of the two"),
        (["--trials", "2", "--trials", "3"], "--trials: is given twice"),
        (["--name", "../../x"], r"--name \.\./\.\./x: must be 1 to 100 letters"),
        (["--name", ""], "--name: its value is empty"),
        (["--resume", "--extend"], "--extend: a resumed sweep goes on as it was started"),
        (["--set", "training.max_steps=5", "--set", "training.max_steps=6"], "takes the place of --set training.max_"),
    ],
)
def test_what_a_sweep_refuses(call: Main, tmp_path: Path, line: list[str], message: str) -> None:
    suite = TINY[:2] if "--resume" in line else TINY
    with pytest.raises(UserError, match=message):
        call("sweep", *suite, *line, "--no-probe")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", ["0-3", "0,1", "x", "1.0", "-1", str(2**63)])
def test_a_run_has_one_seed(call: Main, tmp_path: Path, seed: str) -> None:
    with pytest.raises(UserError, match=rf"--seed {seed}: (must be one number|.*(greater|less|between))"):
        call("train", *TINY, "--method", "lora", "--seed", seed)
    assert not list(tmp_path.iterdir())


def dry_run(call: Main, capsys: pytest.CaptureFixture[str], *line: str) -> tuple[list[str], str]:
    """The trials that a dry run names, without their hashes, and all that it prints."""
    assert call("sweep", *line, "--dry-run") == 0
    printed = capsys.readouterr().out
    return re.findall(r"^ (\w+)-[0-9a-f]{8}-(seed\d+) ", printed, re.MULTILINE), printed


def test_a_range_of_seeds(call: Main, capsys: pytest.CaptureFixture[str]) -> None:
    named, _ = dry_run(call, capsys, *TINY, "--methods", "lora", "--seeds", "0-2,7")
    assert named == [("lora", f"seed{seed}") for seed in (0, 1, 2, 7)]


def test_trials_take_the_place_of_a_budget_of_the_suite(
    call: Main, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (root / "tune_spaces" / "commonsense.yaml").read_text(encoding="utf-8")
    text = text.replace("      seeds: [0, 1]", "      seeds: [0, 1]\n      budget: 2", 1)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    line = ["--suite", "mine.yaml", "--preset", "tiny", "--methods", "lora"]
    line += ["--set", "methods.lora.learning_rate={loguniform: [1e-4, 1e-2]}"]
    assert "search of 2 GPU-hours" in dry_run(call, capsys, *line)[1]
    for three in (["--trials", "3"], ["--set", "search.trials=3"], ["--set", "search.budget=null", "--trials", "3"]):
        assert "3 trials of search" in dry_run(call, capsys, *line, *three)[1]


def test_what_an_extension_takes_over_and_replaces(
    call: Main, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, preset = load_preset(root / "tune_spaces" / "commonsense.yaml", "tiny", has_gpu=False)
    options = {"data_dir": None, "overrides": ["training.max_steps=20", "methods.lora.r=4"]}
    values = preset.model_dump(mode="json")
    SavedSweep("s", "commonsense", "tiny", values, ["lora"], 1.0, {}, options).save(str(tmp_path / "runs"))
    extend = ["--suite", "commonsense", "--extend", "s"]
    named, printed = dry_run(call, capsys, *extend, "--seeds", "1-3", "--methods", "lora,dora")
    both = [(method, f"seed{seed}") for method in ("lora", "dora") for seed in (0, 1, 2, 3)]
    assert named == both and " 20 " in printed and "r=4" in printed
    named, printed = dry_run(call, capsys, *extend, "--set", "training.epochs=1", "--set", "methods.lora.r=2")
    assert named == [("lora", "seed0"), ("lora", "seed1")] and "r=2" in printed and " 20 " not in printed
    with pytest.raises(UserError, match="--methods lora,lora: lora is listed twice"):
        call("sweep", *extend, "--methods", "lora,lora", "--dry-run")


def test_numbers_of_more_digits_than_python_reads(call: Main) -> None:
    digits = "9" * 5000
    with pytest.raises(UserError, match=r"--seed 999.*must be one number"):
        call("train", *TINY, "--method", "lora", "--seed", digits)
    with pytest.raises(UserError, match=r"--max-concurrent 999.*must be an integer from 1 to"):
        call("sweep", "--suite", "commonsense", "--resume", "x", "--max-concurrent", digits)
