"""Bad input: one clear line, exit code 2, and Ray is never started."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from beamplatform.models.loading import resolve_path

TINY = ["--suite", "commonsense", "--preset", "tiny"]


def run(root: Path, folder: Path, pipeline: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(root / "pipelines" / pipeline, *arguments, folder=folder, timeout=900)


@pytest.mark.parametrize(
    ("pipeline", "arguments", "message"),
    [
        ("sweep.py", ["--suite", "nope"], "--suite nope: not in .*tune_spaces; allowed: code, commonsense, math"),
        ("sweep.py", [*TINY, "--methods", "lorra"], "--methods lorra: .* allowed: all, beamlora, lora, dora, adalora"),
        ("sweep.py", [*TINY, "--seeds", "0,x"], "--seeds 0,x: .*valid integer"),
        ("sweep.py", [*TINY, "--data-dir", "/nowhere"], "no data folder at /nowhere"),
        ("sweep.py", [*TINY, "--set", "methods.relora.cycle=30", "--methods", "all"], "100 steps are not a multiple"),
        ("sweep.py", [*TINY, "--set", "methods.increlora.top_h=1", "--methods", "increlora", "--set",
                      "methods.increlora.ranks_per_growth=1"], "only 61 of 240 ranks .*top_h = 7 would do"),
        ("sweep.py", [*TINY, "--set", "methods.pissa.lora_dropout=0.1"], "less than or equal to 0, got 0.1"),
        ("sweep.py", [*TINY, "--set", "search.methods=[full, lola]"], "'lola' is not below methods; allowed: beamlora"),
        ("sweep.py", [*TINY, "--set", "methods.lora.r=200"], r"rank 200 is larger than .* \[\d+, \d+\]; allowed"),
        ("sweep.py", [*TINY, "--set", "methods.beamlora.interval=180"], "interval=180: no beam step can happen in 100"),
        ("sweep.py", [*TINY, "--set", "methods.lora.target_modules=[nope]"], "no such layer .* allowed: .*q_proj"),
        ("sweep.py", [*TINY, "--set", "methods.lora.target_modules=[q_proj, v_porj]"], "'v_porj'; did you mean 'v_pr"),
        ("sweep.py", [*TINY, "--set", "data.max_length=4096"], "data.max_length: 4096 tokens are more than the 2048"),
        ("sweep.py", [*TINY, "--set", "model.path=/nowhere"], "model.path: no model folder at /nowhere; give"),
        ("sweep.py", [*TINY[:2], "--resume"], "--resume: no sweep of the suite commonsense in .*/runs"),
        ("sweep.py", [*TINY[:2], "--resume", "nope"], "--resume nope: no such sweep .* commonsense there: none"),
        ("sweep.py", [*TINY[:2], "--resume", "--seeds", "1"], "--seeds: a resumed sweep goes on as it was started"),
        ("sweep.py", [*TINY[:2], "--resume", "--set", "a=1"], "--set: a resumed sweep goes on as it was started"),
        ("sweep.py", [*TINY[:2], "--resume", "--max-concurrent", "0"], "--max-concurrent 0: must be an integer from 1"),
        ("sweep.py", [*TINY, "--search", "tpee"], "--search tpee: .*'random', 'grid', 'tpe', 'asha', 'hyperband'"),
        ("sweep.py", [*TINY, "--trials", "0"], "--trials 0: .*greater than or equal to 1"),
        ("sweep.py", [*TINY, "--budget", "0"], "--budget 0: .*greater than 0"),
        ("sweep.py", [*TINY, "--search", "asha", "--trials", "2"], "--trials 2: asha continues one of 3 trials"),
        ("sweep.py", [*TINY, "--seeds", "0,1000"], "seeds must be fresh ones: 1000 is the search's own"),
        ("sweep.py", [*TINY, "--set", "search.metric=f1"], "search.metric=f1: unknown key; allowed: algorithm, trials"),
        ("sweep.py", [*TINY, "--set", "training.gpus_per_worker=0.5", "--set", "training.workers=2"],
         r"gpus_per_worker \(0.5\) below 1 needs workers: 1, got 2"),
        ("sweep.py", [*TINY, "--set", "training.global_batch=1048576", "--set", "training.micro_batch=1048576"],
         "larger than the training set"),
        ("sweep.py", [*TINY[:2], "--extend"], "--extend: no sweep of the suite commonsense in .*/runs"),
        ("sweep.py", [*TINY[:2], "--extend", "nope"], "--extend nope: no such sweep .* commonsense there: none"),
        ("sweep.py", [*TINY[:2], "--extend", "a", "--name", "b"], "--name: an extended sweep keeps its name"),
        ("train.py", [*TINY, "--method", "dorra"], "--method dorra: .*allowed: beamlora, lora, dora, adalora"),
        ("train.py", [*TINY[:2], "--preset", "paper", "--method", "lora"], "searches learning_rate.*--set methods"),
        ("evaluate.py", [*TINY, "--adapter", "/nowhere"], "/nowhere"),
        ("evaluate.py", [*TINY, "--set", "evaluation.samples=3"], r"samples \(3\) need a temperature above 0"),
        ("evaluate.py", [*TINY, "--set", "evaluation.pass_at=[5]"], r"pass_at \(5\) needs at least as many samples"),
        ("evaluate.py", [*TINY, "--set", "evaluation.beams=2", "--set", "evaluation.temperature=1"], "choose one"),
        ("evaluate.py", [*TINY, "--set", "evaluation.unsafe=true"], "evaluation.unsafe"),
        ("evaluate.py", ["--suite", "math", "--preset", "paper", "--model", "tiny"], "no gsm8k/test.jsonl of the task"),
        ("evaluate.py", [*TINY, "--tasks", "own.py"], "no task file .*/own.py"),
        ("evaluate.py", [*TINY, "--tasks", "boolqq"], "unknown task 'boolqq': allowed are boolq"),
    ],
)  # fmt: skip
def test_one_line_and_exit_code_2(
    root: Path, tmp_path: Path, pipeline: str, arguments: list[str], message: str
) -> None:
    done = run(root, tmp_path, pipeline, *arguments)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing was started, so nothing is left behind"


def test_an_adapter_for_another_base_model(root: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
    )
    get_peft_model(other, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    done = run(root, tmp_path, "evaluate.py", *TINY, "--adapter", "adapter")
    assert done.returncode == 2
    assert "error: adapter adapter was not made for the base model" in done.stderr and "q_proj" in done.stderr


def test_a_name_that_a_sweep_of_another_suite_has(root: Path, tmp_path: Path) -> None:
    from beamplatform.sweep.plan.saved_sweep import SavedSweep

    saved = SavedSweep("mine", "math", "paper", {}, ["lora"], 0.0)
    saved.save(str(tmp_path / "runs"))
    for arguments, message in (
        (["--name", "mine"], "--name mine: .*/runs/mine is a sweep of the suite math, not of commonsense; choose"),
        (["--extend", "mine"], "--extend mine: a sweep of the suite math, not of commonsense"),
        (["--resume", "mine"], "--resume mine: a sweep of the suite math, not of commonsense"),
    ):
        preset = [] if arguments[0] == "--resume" else TINY[2:]
        done = run(root, tmp_path, "sweep.py", *TINY[:2], *preset, *arguments)
        assert done.returncode == 2 and re.search(f"^error: {message}", done.stderr, re.MULTILINE), done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "mine", "sweep.json"], "nothing lost, nothing added"


def test_what_does_not_fit_is_refused_with_what_would(
    root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the memory of this machine and a batch that no machine has the memory for."""
    long = Path(shutil.copytree(resolve_path("tiny"), tmp_path_factory.mktemp("long") / "model"))
    config = long / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1048576}))
    huge = [
        "--set",
        f"model.path={long}",
        "--set",
        "data.max_length=1048576",
        "--set",
        "training.micro_batch=1024",
        "--set",
        "training.global_batch=1024",
    ]
    done = run(root, tmp_path, "sweep.py", *TINY, "--methods", "lora", *huge)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: lora needs about [\d.]+ GiB for each worker, and this machine's memory has", done.stderr)
    assert "no setting of these fits" in done.stderr and not list(tmp_path.iterdir())
    done = run(root, tmp_path, "sweep.py", *TINY, "--methods", "lora", *huge, "--dry-run")
    assert done.returncode == 0 and "It would be refused here: lora needs about" in done.stdout


def test_a_dry_run_shows_every_trial_and_starts_nothing(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, "sweep.py", *TINY, "--dry-run", "--methods", "lora,beamlora", "--seeds", "5,6",
               "--set", "methods.lora.r={grid: [4, 8]}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 trials of search (random), then 4 final trials" in done.stdout and "Nothing was started" in done.stdout
    assert "MiB" in done.stdout or "GiB" in done.stdout
    assert not list(tmp_path.iterdir())


def test_all_nine_methods(root: Path, tmp_path: Path) -> None:
    from beamplatform.methods import METHODS

    done = run(root, tmp_path, "sweep.py", *TINY, "--dry-run", "--methods", "all", "--seeds", "0")
    named = re.findall(r"^ (\w+)-[0-9a-f]{8}-seed0 ", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and sorted(named) == sorted(METHODS) and len(named) == 9, done.stdout + done.stderr


@pytest.mark.parametrize("pipeline", ["sweep.py", "train.py", "evaluate.py", "compare.py"])
def test_help(root: Path, tmp_path: Path, pipeline: str) -> None:
    """In a process that is all its own."""
    line = [sys.executable, root / "pipelines" / pipeline, "--help"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "--suite" in done.stdout and "usage:" in done.stdout
