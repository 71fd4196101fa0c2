"""The estimate of memory against real workers, by the benchmark that compares more of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def assert_within_15_percent(root: Path, folder: Path, cases: str) -> None:
    line = [sys.executable, root / "benchmarks" / "memory.py", "--only", cases, "--steps", "4"]
    line += ["--json", folder / "found.json"]
    done = subprocess.run(line, capture_output=True, text=True)
    found = json.loads((folder / "found.json").read_text())
    assert len(found) == len(cases.split(",")), done.stdout
    assert all(0.85 <= one["ratio"] <= 1.15 for one in found), done.stdout
    assert done.returncode == 0


def test_the_estimate_is_within_15_percent_of_what_workers_take(root: Path, tmp_path: Path) -> None:
    """BeamLoRA at a high rank, with the activations of a large vocabulary; and full fine-tuning under ZeRO-2."""
    assert_within_15_percent(root, tmp_path, "3,11")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("15", id="shipped"),
        pytest.param("16", id="SmolLM2-135M", marks=pytest.mark.slow),
        pytest.param("17", id="4-layer-LLaMA", marks=pytest.mark.slow),
    ],
)
def test_the_whole_process_too_with_batches_of_changing_length(root: Path, tmp_path: Path, case: str) -> None:
    """Libraries and what the allocator holds back are part of it; the sweep's own test asks a worker under Ray."""
    assert_within_15_percent(root, tmp_path, case)
