"""A few points of the campaign (campaign.py), and trials that fail for good beside others that do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import campaign
import forked

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("forked_ray")]


@pytest.mark.xdist_group("faults-workers")
@pytest.mark.timeout(1200)
def test_killed_workers_change_nothing(tmp_path: Path) -> None:
    """In a beam step, in a checkpoint (the other worker waits for this one), and before the first checkpoint."""
    points = [("beam", 16, 1), ("checkpoint", 20, 0), ("step", 3, 0)]
    assert campaign.kill_workers(points, tmp_path) == []


@pytest.mark.xdist_group("faults-driver")
@pytest.mark.timeout(1200)
def test_a_killed_driver_is_resumed(tmp_path: Path) -> None:
    assert campaign.kill_drivers([0.55], tmp_path) == []


def test_kill_points_are_what_the_campaign_promises() -> None:
    points = campaign.kill_points(20, seed=0)
    assert sum(moment in ("beam", "checkpoint") for moment, _, _ in points) >= 5
    assert len({(step, worker) for _, step, worker in points}) >= 12
    assert points == campaign.kill_points(20, seed=0) != campaign.kill_points(20, seed=1)


FAILING = [
    "--suite", "commonsense", "--preset", "tiny", "--seeds", "0", "--name", "s", "--no-probe",
    "--set", "training.max_steps=20", "--set", "training.checkpoint_every=5", "--set", "training.log_every=5",
    "--set", "evaluation.max_records=4", "--set", "data.validation_records=16",
]  # fmt: skip


@pytest.mark.timeout(1200)
def test_where_all_trials_fail_that_is_said_and_nothing_is_compared(tmp_path: Path, root: Path) -> None:
    """Every point of the search diverges: no final trial is begun, and `compare` has one line to say."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    overflow = f"methods.dora.lora_alpha={{choice: [{10**44}, {10**45}]}}"
    line = [*FAILING, "--methods", "dora", "--set", overflow]
    done = forked.run(root / "pipelines" / "sweep.py", *line, folder=tmp_path, environment=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "all 2 trials failed (details in" in done.stdout and done.stdout.count("is not finite at step 1") >= 2
    assert "Try those again with: python pipelines/sweep.py --suite commonsense --resume s" in done.stdout
    assert "Traceback" not in done.stderr and "Accuracy" not in done.stdout
    compare = (root / "pipelines" / "compare.py", "--suite", "commonsense")
    done = forked.run(*compare, folder=tmp_path, environment=environment)
    assert done.returncode == 2
    assert "sweep 's': no finished trial with scores to compare: 2 FAILED (sweeps" in done.stderr


@pytest.mark.timeout(1200)
def test_failing_trials_are_named_and_the_others_go_on(tmp_path: Path, root: Path) -> None:
    """DoRA's gradient is NaN (its scaling is beyond float32); the disk under BeamLoRA's checkpoints is full.

    The small disk is a tmpfs in a mount namespace; without the right to one, a file lies in the place of the folder.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    del environment["RAY_RUNTIME_ENV_HOOK"]  # forked workers would be outside this mount namespace
    line = [sys.executable, str(root / "pipelines" / "sweep.py"), *FAILING]
    line += ["--methods", "lora,dora,beamlora", "--set", f"methods.dora.lora_alpha={10**45}"]
    wide = environment | {"COLUMNS": "250"}
    dry = forked.run(*line[1:], "--dry-run", folder=tmp_path, environment=wide)
    name = next(word for word in dry.stdout.split() if word.startswith("beamlora-"))
    checkpoints = tmp_path / "storage" / "s" / "trials" / name / "checkpoints"
    checkpoints.mkdir(parents=True)
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', str(checkpoints)]
    why = "No space left on device"
    if shutil.which("unshare") and subprocess.run([*small, "true"], capture_output=True).returncode == 0:
        line = [*small, *line]
    else:
        checkpoints.rmdir()
        checkpoints.write_text("in the way")
        why = "checkpoints"
    done = subprocess.run(
        [*line, "--storage", str(tmp_path / "storage")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    failed = done.stdout[done.stdout.index("2 of 3 trials failed") :]
    assert "dora-" in failed and "the gradient is not finite at step 1: lower the learning rate" in failed
    assert f"{name}: " in failed and "the checkpoint of step 5 cannot be written to" in failed and why in failed
    assert "LoRA" in done.stdout and "BoolQ" in done.stdout, "the table of what there is"

    from beamplatform.tracking import Tracker

    runs = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "commonsense").trial_runs(sweep="s", every_status=True)
    assert {run.method: run.status for run in runs} == {"lora": "FINISHED", "dora": "FAILED", "beamlora": "FAILED"}
    assert json.loads((tmp_path / "storage" / "s" / "sweep.json").read_text())["name"] == "s"
