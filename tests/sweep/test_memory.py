"""The estimate of memory against real workers, by the benchmark that compares more of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_estimate_is_within_15_percent_of_what_workers_take(root: Path, tmp_path: Path) -> None:
    """BeamLoRA at a high rank, with the activations of a large vocabulary; and full fine-tuning under ZeRO-2."""
    line = [sys.executable, root / "benchmarks" / "memory.py", "--only", "3,11", "--json", tmp_path / "found.json"]
    done = subprocess.run(line, capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2 and all(0.85 <= one["ratio"] <= 1.15 for one in found), done.stdout
    assert done.returncode == 0
