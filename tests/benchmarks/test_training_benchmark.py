"""The benchmark of a training step runs, and what it compares is the same training."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from beamplatform.training.loss import summed_loss

SMALL = ["--tokens", "128", "--sequence", "32", "--varied", "--answer", "0.5", "--rounds", "1"]


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(root / "benchmarks" / "training.py"), *SMALL, *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=900)


def test_it_measures_every_way_and_keeps_what_it_prints(root: Path, tmp_path: Path) -> None:
    ways = "limit,lora,beamlora,beamlora+counted+packed+adamw"
    done = run(root, "--ranks", "4", "--ways", ways, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert list(found["rows"]) == ways.split(",") and found["rank"] == 4
    assert all(row["seconds"] > 0 and row["bytes"] > 0 and row["tokens"] == 96 for row in found["rows"].values())
    ratio = found["rows"]["beamlora"]["seconds"] / found["rows"]["lora"]["seconds"]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("beamlora "))
    assert f"{ratio:.2f}" in line.split() and "a snapshot and a beam step take" in done.stdout


def test_an_unknown_way_is_refused(root: Path) -> None:
    done = run(root, "--ways", "lora,qlora")
    assert done.returncode == 2 and "--ways: no qlora; allowed: limit,lora,beamlora" in done.stderr


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(root / "benchmarks")
    spec = spec_from_file_location("training_benchmark", root / "benchmarks" / "training.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packed_examples_have_the_loss_of_padded_ones(benchmark: Any) -> None:
    arguments = argparse.Namespace(
        shape="small", device="cpu", dtype="float32", adapters="float32", tokens=96, sequence=24, varied=True,
        answer=0.6, dropout=0.0, checkpointing=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = benchmark.build(arguments, "beamlora", 4, torch.device("cpu"))
    losses = []
    for packed in (False, True):
        torch.manual_seed(1)
        batch, tokens = benchmark.make_batch(arguments, torch.device("cpu"), packed=packed)
        assert batch["input_ids"].numel() == (tokens if packed else 96) and tokens < 96
        losses.append(float(summed_loss(model, batch, "counted")))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] > 100
