"""One small real sweep that several files look at, and plans that nothing is started for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_workers
import pytest
from small import command

from beamplatform.config.suite import Override, load_preset
from beamplatform.sweep.plan.plan import Plan, plan_sweep


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
    with forked_workers.use():
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        done = subprocess.run(
            command(root, *arguments, *workers, probe=True),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
    return folder, done


@pytest.fixture
def plan(root: Path) -> Callable[..., Plan]:
    """The plan of some methods of the tiny preset; changes are dotted keys with __ for the dots."""

    def made(*methods: str, **changes: Any) -> Plan:
        values = {"evaluation__tasks": ["boolq"], "evaluation__max_records": 8} | changes
        overrides = [Override(key, key.replace("__", "."), json.dumps(value)) for key, value in values.items()]
        path = root / "tune_spaces" / "commonsense.yaml"
        suite, name, preset = load_preset(path, "tiny", has_gpu=False, overrides=overrides)
        return plan_sweep(suite.name, name, preset, methods)

    return made
