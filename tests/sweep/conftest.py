"""One small real sweep that several files look at."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from small import command


@pytest.fixture(scope="session")
def swept(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("sweep")
    arguments = [
        "--methods",
        "beamlora,dora",
        "--seeds",
        "0",
        "--name",
        "first",
        "--set",
        "training.max_steps=20",
    ]
    workers = ["--set", "training.workers=2", "--set", "training.micro_batch=8"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        command(root, *arguments, *workers),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    return folder, done
