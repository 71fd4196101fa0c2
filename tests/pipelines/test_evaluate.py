"""`pipelines/evaluate.py`: adapters of any origin, several at once, and what an interruption costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beamplatform.tasks.predictions import read_predictions
from beamplatform.world import tiny_model_path

TINY = ["--suite", "commonsense", "--preset", "tiny", "--tasks", "boolq,piqa"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters that PEFT made, and one of them merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_path()), config)
        model.save_pretrained(folder / f"adapter{seed}")
        found.append(folder / f"adapter{seed}")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return [*found, folder / "merged"]


def start(root: Path, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    line = [sys.executable, root / "pipelines" / "evaluate.py", *TINY, *map(str, arguments)]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(root: Path, folder: Path, *arguments: object) -> str:
    process = start(root, folder, *arguments)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output


def lines(folder: Path) -> list[str]:
    return [line for file in (folder / "runs" / "answers").glob("*/*.jsonl") for line in file.read_text().splitlines()]


def test_several_models_at_once_score_as_each_alone(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    named = [word for adapter in adapters for word in ("--adapter", adapter)]
    run(root, tmp_path, *named, "--max-records", 20, "--output", "all")
    assert len(lines(tmp_path)) == 3 * 40
    for number, adapter in enumerate(adapters, start=1):
        run(root, tmp_path, "--adapter", adapter, "--max-records", 20, "--output", "one", "--ask-again")
        together, alone = (tmp_path / "all" / str(number)), tmp_path / "one"
        assert (together / "scores.json").read_text() == (alone / "scores.json").read_text()
        for task in ("boolq", "piqa"):
            file = Path("predictions") / f"{task}.parquet"
            assert read_predictions(together / file) == read_predictions(alone / file)
    assert len(lines(tmp_path)) == 3 * 40, "--ask-again keeps nothing"
    output = run(root, tmp_path, "--adapter", adapters[0], "--max-records", 20)
    assert "average" in output and len(lines(tmp_path)) == 3 * 40, "what was answered is not asked again"
    texts = [read_predictions(tmp_path / "all" / str(n) / "predictions" / "boolq.parquet") for n in (1, 2, 3)]
    assert texts[0] != texts[1] and [p.completion for p in texts[1]] == [p.completion for p in texts[2]]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    root: Path, adapters: list[Path], tmp_path: Path, how: signal.Signals
) -> None:
    arguments = ("--adapter", adapters[0], "--set", "evaluation.batch_size=2")
    process = start(root, tmp_path, *arguments)
    while len(lines(tmp_path)) < 20 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), errors
    if how == signal.SIGINT:
        assert "the same command goes on from there" in errors and "Traceback" not in errors
    before = len(lines(tmp_path))
    assert 20 <= before < 200
    run(root, tmp_path, *arguments, "--output", "resumed")
    after = [json.loads(line)[0] for line in lines(tmp_path)]
    assert len(after) == len(set(after)) == 200, "no question was asked twice"
    run(root, tmp_path, *arguments, "--output", "whole", "--ask-again")
    for name in ("scores.json", "predictions/boolq.parquet", "predictions/piqa.parquet"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_same_adapter_twice_is_one_line(root: Path, adapters: list[Path], tmp_path: Path) -> None:
    process = start(root, tmp_path, "--adapter", adapters[0], "--adapter", adapters[0])
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2 and "error: --adapter: the same folder is named twice" in errors
